//! Proof that the laws can fail: each bug planted here must be noticed, by the law named, within a few hundred schedules.
