//! Tests of the crate's public face, one module for each part of it.

#[cfg(test)]
#[cfg(feature = "build")]
mod build_config;
#[cfg(test)]
mod common;
#[cfg(test)]
mod cpio;
#[cfg(test)]
mod diff;
#[cfg(test)]
#[cfg(feature = "build")]
mod image;
#[cfg(test)]
mod kernel;
#[cfg(test)]
#[cfg(feature = "build")]
mod modules;
#[cfg(test)]
mod ramdisk;
#[cfg(test)]
mod reader;
#[cfg(test)]
#[cfg(feature = "build")]
mod signature;
