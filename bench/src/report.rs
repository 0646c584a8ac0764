//! A comparison as Markdown: medians first, then every round.
//!
//! A row's measures are what its first competitor brought in its first round; nothing here knows what they mean.
use std::{fs, path::Path};

use crate::{Failure, stats::median};

/// A quantity that a row yields once a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    pub name: &'static str,
    pub decimals: usize,
    /// Whether it is worth a line among the medians, or only among the rounds.
    pub headline: bool,
}

pub type Reading = (Measure, f64);

#[derive(Debug)]
pub struct Report {
    /// What all figures depend on, one fact a line.
    pub facts: Vec<String>,
    pub competitors: Vec<String>,
    pub rows: Vec<ReportRow>,
}

#[derive(Debug)]
pub struct ReportRow {
    pub name: String,
    /// By competitor, then by round.
    pub rounds: Vec<Vec<Vec<Reading>>>,
}

impl Report {
    /// Prints it and, if asked to, writes it to a file.
    pub fn publish(&self, out: Option<&Path>) -> Result<(), Failure> {
        let text = self.render();
        print!("{text}");
        let failed =
            |path: &Path, error| Failure::Run(format!("cannot write {}: {error}; the table is above", path.display()));
        out.map_or(Ok(()), |path| fs::write(path, text).map_err(|error| failed(path, error)))
    }

    pub fn render(&self) -> String {
        let facts: String = self.facts.iter().map(|fact| format!("- {fact}\n")).collect();
        format!("{facts}\n{}\n{}", self.render_medians(), self.render_rounds())
    }

    fn render_medians(&self) -> String {
        let (first, others) = self.competitors.split_first().expect("a comparison has a competitor");
        let ratios = others.iter().map(|other| format!("{first} / {other}"));
        let numbers = self.competitors.iter().cloned().chain(ratios).collect();
        let mut table = table_head(&["row", "median of"], numbers);
        for row in &self.rows {
            let mut name = row.name.as_str();
            for (i, measure) in row.measures().filter(|(_, measure)| measure.headline) {
                let medians: Vec<_> = (0..self.competitors.len()).map(|c| median(&row.values(c, i))).collect();
                let shown = medians.iter().map(|value| number(*value, measure.decimals));
                let ratios = medians[1..].iter().map(|other| ratio(medians[0], *other));
                let cells = [name.into(), measure.name.into()].into_iter().chain(shown).chain(ratios);
                table += &table_line(cells);
                name = "";
            }
        }
        table
    }

    fn render_rounds(&self) -> String {
        let rounds = self.rows.first().map_or(0, |row| row.rounds[0].len());
        let numbers = (1..=rounds).map(|round| format!("round {round}")).collect();
        let mut table = table_head(&["row", "measure", "competitor"], numbers);
        for row in &self.rows {
            for (i, measure) in row.measures() {
                for (c, competitor) in self.competitors.iter().enumerate() {
                    let shown = row.values(c, i).into_iter().map(|value| number(value, measure.decimals));
                    let cells = [row.name.as_str(), measure.name, competitor].map(String::from);
                    table += &table_line(cells.into_iter().chain(shown));
                }
            }
        }
        format!("<details>\n<summary>Every round</summary>\n\n{table}\n</details>\n")
    }
}

impl ReportRow {
    fn measures(&self) -> impl Iterator<Item = (usize, Measure)> {
        self.rounds[0][0].iter().map(|(measure, _)| *measure).enumerate()
    }

    /// One measure of one competitor, by round.
    fn values(&self, competitor: usize, measure: usize) -> Vec<f64> {
        self.rounds[competitor].iter().map(|readings| readings[measure].1).collect()
    }
}

/// Names and alignment of columns of text, then of numbers.
fn table_head(texts: &[&str], numbers: Vec<String>) -> String {
    let alignment = vec!["---"; texts.len()].into_iter().chain(vec!["---:"; numbers.len()]);
    let alignment = table_line(alignment.map(String::from));
    table_line(texts.iter().map(|name| name.to_string()).chain(numbers)) + &alignment
}

fn table_line(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<_> = cells.collect();
    format!("| {} |\n", cells.join(" | "))
}

fn ratio(first: f64, other: f64) -> String {
    if other == 0.0 { "-".into() } else { format!("{:.2}", first / other) }
}

/// With commas between thousands.
fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        #[track_caller]
        fn check(value: f64, decimals: usize, expected: &str) {
            assert_eq!(number(value, decimals), expected);
        }
        check(0.0, 0, "0");
        check(999.6, 0, "1,000");
        check(12.345, 2, "12.35");
        check(123_456.7, 0, "123,457");
        check(1_234_567.89, 1, "1,234,567.9");
    }

    #[test]
    fn a_report_shows_medians_and_then_every_round() {
        let ops = Measure { name: "ops/s", decimals: 0, headline: true };
        let p50 = Measure { name: "p50, ms", decimals: 2, headline: true };
        let failed = Measure { name: "failed calls", decimals: 0, headline: false };
        let round = |a, b, c| vec![(ops, a), (p50, b), (failed, c)];
        let new = vec![round(9_000.0, 3.5, 0.0), round(12_000.0, 2.5, 0.0), round(10_000.0, 3.0, 0.0)];
        let old = vec![round(5_000.0, 7.0, 0.0), round(4_000.0, 6.0, 2.0), round(6_000.0, 5.0, 0.0)];
        let resident = Measure { name: "resident, MB", decimals: 1, headline: true };
        let memory = |values: [f64; 3]| values.map(|value| vec![(resident, value)]).to_vec();
        let report = Report {
            facts: vec!["2 cores".into(), "3 members".into()],
            competitors: vec!["new".into(), "old".into()],
            rows: vec![
                ReportRow { name: "put-100".into(), rounds: vec![new, old] },
                ReportRow { name: "memory".into(), rounds: vec![memory([90.0, 80.0, 85.0]), memory([0.0; 3])] },
            ],
        };
        insta::assert_snapshot!(report.render(), @r"
        - 2 cores
        - 3 members

        | row | median of | new | old | new / old |
        | --- | --- | ---: | ---: | ---: |
        | put-100 | ops/s | 10,000 | 5,000 | 2.00 |
        |  | p50, ms | 3.00 | 6.00 | 0.50 |
        | memory | resident, MB | 85.0 | 0.0 | - |

        <details>
        <summary>Every round</summary>

        | row | measure | competitor | round 1 | round 2 | round 3 |
        | --- | --- | --- | ---: | ---: | ---: |
        | put-100 | ops/s | new | 9,000 | 12,000 | 10,000 |
        | put-100 | ops/s | old | 5,000 | 4,000 | 6,000 |
        | put-100 | p50, ms | new | 3.50 | 2.50 | 3.00 |
        | put-100 | p50, ms | old | 7.00 | 6.00 | 5.00 |
        | put-100 | failed calls | new | 0 | 0 | 0 |
        | put-100 | failed calls | old | 0 | 2 | 0 |
        | memory | resident, MB | new | 90.0 | 80.0 | 85.0 |
        | memory | resident, MB | old | 0.0 | 0.0 | 0.0 |

        </details>
        ");
    }
}
