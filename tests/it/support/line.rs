//! A network line with a delay: a TCP proxy that hands on what it reads after a while.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Starts a line to `target`, each of whose directions takes `delay`; returns its address here.
pub async fn delayed(target: String, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (near, _) = listener.accept().await.unwrap();
            let target = target.clone();
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(target).await else {
                    return;
                };
                for stream in [&near, &far] {
                    stream.set_nodelay(true).unwrap();
                }
                let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
                tokio::join!(carry(from_near, to_far, delay), carry(from_far, to_near, delay));
            });
        }
    });
    address
}

/// Carries bytes, each `delay` after it was read, until one end closes.
async fn carry(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, delay: Duration) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let read = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + delay;
            if sender.send((due, buffer[..n].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}
