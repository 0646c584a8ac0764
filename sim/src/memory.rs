//! The allocator, and a bound on what a run may hold: exhausted memory is a verdict, not a crash of the machine.
use std::{
    alloc::{GlobalAlloc, Layout},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Bytes that a run may hold. A whole cluster under load takes a tenth of it.
pub const MEMORY_BYTES_MAX: usize = 3 << 30;

static USED: AtomicUsize = AtomicUsize::new(0);

/// mimalloc, counted.
pub struct Counted(pub mimalloc::MiMalloc);

/// Bytes held now.
pub fn used() -> usize {
    USED.load(Relaxed)
}

// SAFETY: every call goes to mimalloc unchanged; counting touches no memory of the caller's.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        USED.fetch_add(layout.size(), Relaxed);
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Relaxed);
        unsafe { self.0.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        USED.fetch_add(size, Relaxed);
        USED.fetch_sub(layout.size(), Relaxed);
        unsafe { self.0.realloc(pointer, layout, size) }
    }
}
