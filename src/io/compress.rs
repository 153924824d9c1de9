//! COMPRESS DEFLATE (RFC 4978) over a stream: raw deflate in both directions, flushed when the
//! writer flushes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of compressed data held in each direction.
const BUFFER: usize = 16 * 1024;

/// A stream whose both directions are compressed.
pub(super) struct Deflated<S> {
    inner: S,
    inflate: Decompress,
    input: Box<[u8]>,
    input_at: usize,
    input_end: usize,
    /// The inflater's output did not fit last time: it may hold more without more input.
    inflate_full: bool,
    deflate: Compress,
    output: Vec<u8>,
    output_at: usize,
    /// Something was written since the last flush that went through.
    dirty: bool,
}

impl<S> Deflated<S> {
    /// Compresses from the next byte on. `received` is what has been read already of the peer's
    /// compressed bytes.
    pub(super) fn new(inner: S, received: &[u8]) -> Self {
        let mut input = vec![0; BUFFER.max(received.len())].into_boxed_slice();
        input[..received.len()].copy_from_slice(received);
        Self {
            inner,
            inflate: Decompress::new(false),
            input,
            input_at: 0,
            input_end: received.len(),
            inflate_full: false,
            deflate: Compress::new(Compression::default(), false),
            output: Vec::with_capacity(BUFFER),
            output_at: 0,
            dirty: false,
        }
    }
}

impl<S: AsyncWrite + Unpin> Deflated<S> {
    /// Writes out what is compressed.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.output_at < self.output.len() {
            let written =
                ready!(Pin::new(&mut self.inner).poll_write(cx, &self.output[self.output_at..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output_at += written;
        }
        self.output.clear();
        self.output_at = 0;
        Poll::Ready(Ok(()))
    }

    /// Runs the deflater into the (drained) output buffer; how many bytes it took.
    fn deflate(&mut self, bytes: &[u8], flush: FlushCompress) -> io::Result<usize> {
        let before = self.deflate.total_in();
        self.deflate
            .compress_vec(bytes, &mut self.output, flush)
            .map_err(io::Error::other)?;
        Ok((self.deflate.total_in() - before) as usize)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Deflated<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.input_at == this.input_end && !this.inflate_full {
                let mut input = ReadBuf::new(&mut this.input);
                ready!(Pin::new(&mut this.inner).poll_read(cx, &mut input))?;
                this.input_at = 0;
                this.input_end = input.filled().len();
                if this.input_end == 0 {
                    return Poll::Ready(Ok(()));
                }
            }
            let (before_in, before_out) = (this.inflate.total_in(), this.inflate.total_out());
            let status = this
                .inflate
                .decompress(
                    &this.input[this.input_at..this.input_end],
                    buf.initialize_unfilled(),
                    FlushDecompress::Sync,
                )
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            this.input_at += (this.inflate.total_in() - before_in) as usize;
            let produced = (this.inflate.total_out() - before_out) as usize;
            buf.advance(produced);
            this.inflate_full = buf.remaining() == 0;
            if produced > 0 || status == Status::StreamEnd {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Deflated<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            if this.output.len() == this.output.capacity() {
                ready!(this.poll_drain(cx))?;
            }
            let taken = this.deflate(bytes, FlushCompress::None)?;
            if taken > 0 || bytes.is_empty() {
                this.dirty = true;
                return Poll::Ready(Ok(taken));
            }
            ready!(this.poll_drain(cx))?;
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.dirty {
            ready!(this.poll_drain(cx))?;
            this.deflate(&[], FlushCompress::Sync)?;
            // A full buffer means that there may be more to come.
            this.dirty = this.output.len() == this.output.capacity();
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn both_directions_pass_everything_in_small_pieces() {
        // A pipe of 37 bytes makes every write and read partial.
        let (a, b) = tokio::io::duplex(37);
        let (mut a, mut b) = (Deflated::new(a, b""), Deflated::new(b, b""));
        let mut sent = Vec::new();
        for n in 0..40_000_u32 {
            sent.extend_from_slice(&n.wrapping_mul(2_654_435_761).to_le_bytes());
        }
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            for part in sent.chunks(10_000) {
                a.write_all(part).await.unwrap();
                a.flush().await.unwrap();
            }
            a.shutdown().await.unwrap();
            a
        });
        let mut received = vec![0; expected.len()];
        b.read_exact(&mut received).await.unwrap();
        assert!(received == expected);
        b.write_all(b"OK\r\n").await.unwrap();
        b.flush().await.unwrap();
        let mut a = writer.await.unwrap();
        let mut answer = [0; 4];
        a.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"OK\r\n");
    }

    #[tokio::test]
    async fn a_flush_brings_everything_across_and_a_second_one_nothing() {
        let (a, b) = tokio::io::duplex(1 << 20);
        let (mut a, mut b) = (Deflated::new(a, b""), b);
        a.write_all(b"NOOP\r\n").await.unwrap();
        a.flush().await.unwrap();
        let mut first = vec![0; 1000];
        let n = b.read(&mut first).await.unwrap();
        a.flush().await.unwrap();
        drop(a);
        assert_eq!(b.read(&mut [0; 10]).await.unwrap(), 0);
        let mut inflated = Vec::with_capacity(100);
        Decompress::new(false)
            .decompress_vec(&first[..n], &mut inflated, FlushDecompress::Sync)
            .unwrap();
        assert_eq!(inflated, b"NOOP\r\n");
    }
}
