//! Generated images: the parts that go into one, and both ways to put them together.

use std::fs::{self, File};
use std::io::Cursor;
use std::path::{Path, PathBuf};

use aws_nitro_enclaves_image_format::defs::EIF_HDR_ARCH_ARM64;
use aws_nitro_enclaves_image_format::utils::EifBuilder;
use aws_nitro_enclaves_image_format::utils::eif_signer::SignKeyData;
use enclos_eif::{Builder, Signer};
use fastrand::Rng;
use rcgen::{
    CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ECDSA_P521_SHA512,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha384};

/// How many images are compared.
pub(crate) const CASES: u64 = 200;

/// Kernel, command line, metadata and signature leave room for this many of 32 sections.
const MAX_RAMDISKS: usize = 28;

/// Key and certificate as files and as text.
pub(crate) struct Pair {
    pub(crate) key: PathBuf,
    pub(crate) certificate: PathBuf,
}

/// The parts of one image, on disk where AWS's code wants them.
pub(crate) struct Case {
    pub(crate) number: u64,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) cmdline: String,
    pub(crate) metadata: Value,
    pub(crate) ramdisks: Vec<PathBuf>,
    pub(crate) signing: Option<Pair>,
    pub(crate) is_aarch64: bool,
}

/// What AWS's code made of a case.
pub(crate) struct Theirs {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Vec<u8>,
    pub(crate) pcrs: Vec<(String, String)>,
}

/// Every case, one after the other: only one is on disk at a time.
pub(crate) fn cases() -> impl Iterator<Item = Case> {
    (0..CASES).map(Case::generate)
}

impl Case {
    pub(crate) fn generate(number: u64) -> Self {
        let mut rng = Rng::with_seed(0xE1F + number);
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kernel"), kernel(&mut rng)).unwrap();
        // Most images have a few ramdisks; every tenth has as many as fit.
        let count = match number % 10 {
            9 => MAX_RAMDISKS,
            _ => rng.usize(1..=5),
        };
        let ramdisks = (0..count)
            .map(|index| {
                let path = folder.path().join(format!("ramdisk{index}"));
                fs::write(&path, ramdisk(&mut rng)).unwrap();
                path
            })
            .collect();
        let signing = (number % 3 == 2).then(|| pair(&mut rng, folder.path()));
        Self {
            number,
            cmdline: cmdline(&mut rng),
            metadata: metadata(&mut rng),
            ramdisks,
            signing,
            is_aarch64: false,
            folder,
        }
    }

    /// The same with a kernel for aarch64.
    pub(crate) fn for_aarch64(number: u64) -> Self {
        let case = Self::generate(number);
        let mut rng = Rng::with_seed(0xAA64 + number);
        fs::write(case.kernel(), arm64_kernel(&mut rng)).unwrap();
        Self {
            is_aarch64: true,
            ..case
        }
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.folder.path().join("kernel")
    }

    /// Through AWS's library.
    pub(crate) fn theirs(&self) -> Theirs {
        let path = self.folder.path().join("theirs.eif");
        let mut file = File::create_new(&path).unwrap();
        let signing = self
            .signing
            .as_ref()
            .map(|pair| SignKeyData::new(pair.key.to_str().unwrap(), &pair.certificate).unwrap());
        let mut builder = EifBuilder::new(
            &self.kernel(),
            self.cmdline.clone(),
            signing,
            Sha384::new(),
            if self.is_aarch64 {
                EIF_HDR_ARCH_ARM64
            } else {
                0
            },
            serde_json::from_value(self.metadata.clone()).unwrap(),
        );
        for ramdisk in &self.ramdisks {
            builder.add_ramdisk(ramdisk);
        }
        let pcrs = builder.write_to(&mut file);
        let bytes = fs::read(&path).unwrap();
        Theirs {
            path,
            bytes,
            pcrs: pcrs
                .into_iter()
                .filter(|(name, _)| name.starts_with("PCR"))
                .collect(),
        }
    }

    /// Through our library.
    pub(crate) fn ours(&self) -> (PathBuf, Vec<u8>, enclos_eif::Measurements) {
        let signer = self.signing.as_ref().map(|pair| {
            let text = |path: &Path| fs::read_to_string(path).unwrap();
            Signer::from_pem(&text(&pair.key), &text(&pair.certificate)).unwrap()
        });
        let mut builder = Builder::new()
            .kernel(self.kernel())
            .cmdline(self.cmdline.clone())
            .metadata(serde_json::from_value(self.metadata.clone()).unwrap());
        for ramdisk in &self.ramdisks {
            builder = builder.ramdisk(ramdisk.as_path());
        }
        if let Some(signer) = &signer {
            builder = builder.sign(signer);
        }
        let mut out = Cursor::new(Vec::new());
        let measurements = builder.write(&mut out).unwrap();
        let (path, bytes) = (self.folder.path().join("ours.eif"), out.into_inner());
        fs::write(&path, &bytes).unwrap();
        (path, bytes, measurements)
    }
}

/// Our registers under AWS's names.
pub(crate) fn named(pcrs: &enclos_eif::Measurements) -> Vec<(String, String)> {
    let named = [
        ("PCR0", Some(pcrs.pcr0)),
        ("PCR1", Some(pcrs.pcr1)),
        ("PCR2", Some(pcrs.pcr2)),
        ("PCR8", pcrs.pcr8),
    ];
    let there = named
        .into_iter()
        .filter_map(|(name, pcr)| Some((name, pcr?)));
    there
        .map(|(name, pcr)| (name.to_owned(), pcr.to_string()))
        .collect()
}

/// Sizes from nothing to a few times the chunks that readers work in.
fn body(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.u8(0..10) {
        0 => 0,
        1..=5 => rng.usize(1..4096),
        6..=8 => rng.usize(4096..300_000),
        _ => rng.usize(300_000..1_200_000),
    };
    let mut bytes = vec![0; len];
    rng.fill(&mut bytes);
    bytes
}

/// A bzImage as far as a loader looks: as long as its header says, everything else is noise.
fn kernel(rng: &mut Rng) -> Vec<u8> {
    let setup_sectors = rng.usize(1..5);
    let mut code = body(rng);
    code.resize(code.len().next_multiple_of(16).max(16), 0);
    let mut image = vec![0; (setup_sectors + 1) * 512];
    image[0x1f1] = u8::try_from(setup_sectors).unwrap();
    image[0x1f4..0x1f8].copy_from_slice(&u32::try_from(code.len() / 16).unwrap().to_le_bytes());
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    image.extend_from_slice(&code);
    image
}

/// An arm64 `Image` as far as a loader looks: no longer than its header says, everything else is noise.
fn arm64_kernel(rng: &mut Rng) -> Vec<u8> {
    let mut image = vec![0; 64];
    rng.fill(&mut image[..56]);
    image[..2].fill(0);
    image[24] &= 0xfe;
    image[56..60].copy_from_slice(b"ARM\x64");
    image.extend_from_slice(&body(rng));
    let size = u64::try_from(image.len()).unwrap() + rng.u64(0..1 << 20);
    image[16..24].copy_from_slice(&size.to_le_bytes());
    image
}

/// One of the magics that ramdisks have, then noise: nobody unpacks it before it boots.
fn ramdisk(rng: &mut Rng) -> Vec<u8> {
    let magics: [&[u8]; 5] = [
        b"070701",
        &[0x1f, 0x8b],
        &[0x28, 0xb5, 0x2f, 0xfd],
        &[0xfd, b'7', b'z', b'X', b'Z', 0],
        &[0x02, 0x21, 0x4c, 0x18],
    ];
    let magic = magics[rng.usize(0..magics.len())];
    [magic, &body(rng)].concat()
}

fn cmdline(rng: &mut Rng) -> String {
    let len = match rng.u8(0..10) {
        0 => 0,
        1 => 2047,
        _ => rng.usize(1..300),
    };
    (0..len).map(|_| char::from(rng.u8(b' '..=b'~'))).collect()
}

fn text(rng: &mut Rng) -> String {
    const LETTERS: [char; 12] = [
        'a', 'Z', '0', '-', '"', '\\', '\n', 'é', '你', '🦀', '/', ' ',
    ];
    (0..rng.usize(0..20))
        .map(|_| LETTERS[rng.usize(0..LETTERS.len())])
        .collect()
}

fn value(rng: &mut Rng, depth: u8) -> Value {
    match rng.u8(0..if depth == 0 { 4 } else { 6 }) {
        0 => Value::Null,
        1 => rng.bool().into(),
        2 => rng.i64(..).into(),
        3 => text(rng).into(),
        4 => (0..rng.usize(0..4))
            .map(|_| value(rng, depth - 1))
            .collect(),
        _ => object(rng, depth - 1),
    }
}

fn object(rng: &mut Rng, depth: u8) -> Value {
    let entries =
        (0..rng.usize(0..4)).map(|index| (format!("k{index}{}", text(rng)), value(rng, depth)));
    Value::Object(entries.collect())
}

fn metadata(rng: &mut Rng) -> Value {
    json!({
        "ImageName": text(rng),
        "ImageVersion": text(rng),
        "BuildMetadata": {
            "BuildTime": "2024-01-01T00:00:00+00:00",
            "BuildTool": text(rng),
            "BuildToolVersion": text(rng),
            "OperatingSystem": text(rng),
            "KernelVersion": text(rng),
        },
        "DockerInfo": value(rng, 3),
        "CustomMetadata": if rng.bool() { Value::Null } else { object(rng, 3) },
    })
}

fn pair(rng: &mut Rng, folder: &Path) -> Pair {
    let algorithm = match rng.u8(0..3) {
        0 => &PKCS_ECDSA_P256_SHA256,
        1 => &PKCS_ECDSA_P384_SHA384,
        _ => &PKCS_ECDSA_P521_SHA512,
    };
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "signer");
    if rng.bool() {
        params.distinguished_name.push(DnType::CountryName, "FR");
        params
            .distinguished_name
            .push(DnType::StateOrProvinceName, "Île-de-France");
        params
            .distinguished_name
            .push(DnType::LocalityName, "Paris");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Example, Inc.");
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, "Enclaves");
    }
    let certificate = params.self_signed(&key).unwrap();
    let pair = Pair {
        key: folder.join("key.pem"),
        certificate: folder.join("certificate.pem"),
    };
    fs::write(&pair.key, key.serialize_pem()).unwrap();
    fs::write(&pair.certificate, certificate.pem()).unwrap();
    pair
}
