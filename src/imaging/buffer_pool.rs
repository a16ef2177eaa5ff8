//! Reused buffers, which bound the memory of a write.
//!
//! The reader uses it, and waits while every buffer is in use. A buffer returns when the last
//! [`Bytes`] made of it is dropped, on any thread. The pool must never make more buffers than its
//! limit.

use std::sync::mpsc;

use bytes::Bytes;

/// Buffers of one size, made when first needed.
#[derive(Debug)]
pub(super) struct BufferPool {
    buffer_bytes: usize,
    /// The number of buffers that may still be made.
    unmade: usize,
    back: mpsc::Sender<Vec<u8>>,
    free: mpsc::Receiver<Vec<u8>>,
}

/// A buffer in use.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    back: mpsc::Sender<Vec<u8>>,
}

impl BufferPool {
    /// A pool of `count` buffers of `buffer_bytes` each.
    pub(super) fn new(count: usize, buffer_bytes: usize) -> Self {
        let (back, free) = mpsc::channel();
        Self { buffer_bytes, unmade: count, back, free }
    }

    /// Takes a buffer of at most the pool's buffer size, with arbitrary content; blocks until one
    /// is free.
    pub(super) fn take(&mut self, length: usize) -> Buffer {
        let free = self.free.try_recv().or_else(|_| {
            if self.unmade > 0 {
                self.unmade -= 1;
                Ok(vec![0; self.buffer_bytes])
            } else {
                self.free.recv()
            }
        });
        // The pool itself holds a sender, so that a buffer always comes.
        let bytes = free.unwrap_or_default();
        Buffer { length: length.min(bytes.len()), bytes, back: self.back.clone() }
    }
}

impl Buffer {
    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.length).unwrap_or_default()
    }

    pub(super) fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Without a pool, the buffer is freed.
        drop(self.back.send(std::mem::take(&mut self.bytes)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_part_is_dropped_and_no_more_are_made() {
        let mut pool = BufferPool::new(2, 8);
        let first = pool.take(8).freeze();
        let part = first.slice(2..4);
        let second = pool.take(3);
        assert_eq!((second.as_ref().len(), pool.unmade), (3, 0));
        drop(first);
        assert!(pool.free.try_recv().is_err(), "a part is still in use");
        drop(part);
        assert_eq!(pool.take(8).as_ref().len(), 8);
        drop(pool);
        drop(second);
    }
}
