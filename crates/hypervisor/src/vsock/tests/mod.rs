//! The device against a guest's driver in memory and real unix sockets.

mod driver;
mod hostile;
mod life;
mod machine;
mod streams;
