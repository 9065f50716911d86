//! How fast an image is measured and its ramdisk unpacked, against one SHA-384 over the same bytes and
//! against copying them.
//!
//! The image has the proportions of a real one: 12 MiB of kernel, 1 MiB of runtime, 96 MiB of application.
//! Two registers cover the application, so twice the time of one hash would be no surprise; the second
//! hash has a thread of its own.

use std::hint::black_box;
use std::io::{BufReader, Cursor, Write};

use aws_lc_rs::digest::{SHA384, digest};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use enclos_eif::cpio::{Archive, Attributes};
use enclos_eif::{BuildMetadata, Builder, Eif, Metadata, measure, ramdisk};

const MIB: usize = 1 << 20;

criterion_group!(benches, measuring, unpacking);
criterion_main!(benches);

fn measuring(criterion: &mut Criterion) {
    let image = image();
    let mut group = criterion.benchmark_group("109 MiB");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(u64::try_from(image.len()).unwrap_or(0)));
    group.bench_function("one SHA-384", |b| {
        b.iter(|| digest(&SHA384, black_box(&image)))
    });
    group.bench_function("parse and measure", |b| {
        b.iter(|| {
            let mut file = Cursor::new(black_box(&image));
            let eif = Eif::parse(&mut file);
            eif.and_then(|eif| measure(&mut file, &eif))
        });
    });
    group.finish();
}

fn unpacking(criterion: &mut Criterion) {
    let archive = archive(96 * MIB);
    let packed = zstd::encode_all(archive.as_slice(), 3).unwrap_or_default();
    let mut out = Vec::with_capacity(archive.len());
    let mut group = criterion.benchmark_group("96 MiB ramdisk");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(u64::try_from(archive.len()).unwrap_or(0)));
    group.bench_function("copy", |b| {
        b.iter(|| {
            out.clear();
            out.write_all(black_box(&archive))
        });
    });
    for (name, ramdisk) in [("plain", &archive), ("zstd", &packed)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                let mut reader = BufReader::with_capacity(MIB, black_box(ramdisk.as_slice()));
                ramdisk::unpack_to(&mut reader, &mut out, u64::MAX)
            });
        });
    }
    group.finish();
}

/// An archive of files of 40 KiB, the average of a Python root file system.
fn archive(len: usize) -> Vec<u8> {
    let body = noise(40 << 10);
    let mut archive = Archive::new(Vec::with_capacity(len + MIB), 0);
    for i in 0..len / body.len() {
        let name = format!("rootfs/usr/lib/file-{i:06}");
        let len = u64::try_from(body.len()).unwrap_or(0);
        let attributes = Attributes::root(0o644);
        if archive
            .file(name.as_bytes(), attributes, len, &mut body.as_slice())
            .is_err()
        {
            break;
        }
    }
    archive.finish().unwrap_or_default()
}

/// Bytes that do not compress to nothing.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let bytes = (0..len).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 59).to_le_bytes()[0]
    });
    bytes.collect()
}

/// A boot header that announces `len` bytes, and as many.
fn kernel(len: usize) -> Vec<u8> {
    let mut kernel = noise(len);
    kernel[..2].copy_from_slice(&[0; 2]);
    kernel[0x1f1] = 1;
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    let syssize = u32::try_from((len - 1024) / 16).unwrap_or(0);
    kernel[0x1f4..0x1f8].copy_from_slice(&syssize.to_le_bytes());
    kernel
}

fn image() -> Vec<u8> {
    let metadata = Metadata {
        image_name: "bench".into(),
        image_version: "1.0".into(),
        build_metadata: BuildMetadata {
            build_time: "1970-01-01T00:00:00+00:00".into(),
            build_tool: "bench".into(),
            build_tool_version: "0".into(),
            operating_system: "Linux".into(),
            kernel_version: "6".into(),
        },
        docker_info: serde_json::Value::Null,
        custom_metadata: serde_json::Value::Null,
    };
    let builder = Builder::new()
        .kernel(kernel(12 * MIB))
        .cmdline("quiet")
        .metadata(metadata)
        .ramdisk(archive(MIB))
        .ramdisk(archive(96 * MIB));
    let mut out = Cursor::new(Vec::new());
    assert!(
        builder.write(&mut out).is_ok(),
        "the bench's own image is valid"
    );
    out.into_inner()
}
