//! `describe-eif`, `sign-eif` and `pcr` on files, good and bad.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;
mod inputs;

use daemon::{Daemon, run};
use inputs::{metadata, sound_image};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384};
use serde_json::json;

/// The image of which AWS's builder gave these registers.
const PCR0: &str = "c8eaa4091a629e01ccfe00315d88e60da6aa134421708e1982c19c78fd39ea0977c22b9aa9dc76d7b7466bf463c81420";
const PCR1: &str = "bb597e78cae555537aea0843f40c48b9a510188880a82351eac8c7930825ac391554907e4354f431f36fbc82416d18b4";
const PCR2: &str = "acc1e999d09f68ccefe0801872f447421db743eda299f6b6f0a57ff81883cbbee636108d00e12cc15dfc67e2c45154f6";

/// Byte by byte, since no builder of ours would write a kernel that is none.
fn golden() -> Vec<u8> {
    let metadata = serde_json::to_vec(&metadata()).unwrap();
    let sections: [(u8, &[u8]); 6] = [
        (1, b"kernel"),
        (2, b"cmdline"),
        (5, &metadata),
        (3, b"ramdisk0"),
        (3, b"ramdisk1"),
        (3, b"ramdisk2"),
    ];
    let mut eif = vec![0; 548];
    eif[..6].copy_from_slice(b".eif\0\x04");
    eif[0x1b] = 6;
    for (position, (kind, data)) in sections.into_iter().enumerate() {
        let (offset, len) = (eif.len() as u64, data.len() as u64);
        eif[0x1c + 8 * position..][..8].copy_from_slice(&offset.to_be_bytes());
        eif[0x11c + 8 * position..][..8].copy_from_slice(&len.to_be_bytes());
        eif.extend_from_slice(&[0, kind, 0, 0]);
        eif.extend_from_slice(&len.to_be_bytes());
        eif.extend_from_slice(data);
    }
    let crc = crc32fast::hash(&[&eif[..0x220], &eif[0x224..]].concat());
    eif[0x220..0x224].copy_from_slice(&crc.to_be_bytes());
    eif
}

#[test]
fn describe_eif_prints_what_nitro_cli_prints_and_warns_beside() {
    let daemon = Daemon::none();
    let done = run(
        &daemon,
        &[
            "describe-eif",
            "--eif-path",
            &daemon.file("golden.eif", &golden()),
        ],
    );
    assert_eq!(done.status, 0, "{}", done.stderr);
    insta::assert_snapshot!(done.stdout, @r#"
    {
      "EifVersion": 4,
      "Measurements": {
        "HashAlgorithm": "Sha384 { ... }",
        "PCR0": "c8eaa4091a629e01ccfe00315d88e60da6aa134421708e1982c19c78fd39ea0977c22b9aa9dc76d7b7466bf463c81420",
        "PCR1": "bb597e78cae555537aea0843f40c48b9a510188880a82351eac8c7930825ac391554907e4354f431f36fbc82416d18b4",
        "PCR2": "acc1e999d09f68ccefe0801872f447421db743eda299f6b6f0a57ff81883cbbee636108d00e12cc15dfc67e2c45154f6"
      },
      "IsSigned": false,
      "CheckCRC": true,
      "ImageName": "n",
      "ImageVersion": "v",
      "Metadata": {
        "BuildTime": "2024-01-01T00:00:00+00:00",
        "BuildTool": "t",
        "BuildToolVersion": "0",
        "OperatingSystem": "Linux",
        "KernelVersion": "6.6",
        "DockerInfo": {}
      }
    }
    "#);
    assert!(
        done.stderr.contains("warning: ") && done.stderr.contains("will not be run"),
        "{}",
        done.stderr
    );
}

#[test]
fn a_damaged_image_is_described_as_far_as_it_goes_and_refused_beyond() {
    let daemon = Daemon::none();
    let describe = |name: &str, bytes: &[u8]| {
        run(
            &daemon,
            &["describe-eif", "--eif-path", &daemon.file(name, bytes)],
        )
    };
    let mut flipped = golden();
    *flipped.last_mut().unwrap() ^= 1;
    let done = describe("flipped.eif", &flipped);
    assert_eq!(
        (done.status, done.json()["CheckCRC"].as_bool()),
        (0, Some(false))
    );
    assert!(done.stderr.contains("CRC"), "{}", done.stderr);
    let good = golden();
    let mut unknown = good.clone();
    unknown[548 + 1] = 9;
    let cases: [(&str, &[u8]); 4] = [
        ("empty", b""),
        ("text", b"not an image at all"),
        ("cut", &good[..800]),
        ("unknown", &unknown),
    ];
    for (name, bytes) in cases {
        let done = describe(name, bytes);
        assert_eq!(
            (done.status, done.stdout.as_str()),
            (35, ""),
            "{name}: {}",
            done.stderr
        );
        assert!(
            done.stderr.starts_with("[ E35 ] cannot describe"),
            "{}",
            done.stderr
        );
    }
    assert_eq!(
        run(&daemon, &["describe-eif", "--eif-path", "/no/such.eif"]).status,
        35
    );
}

struct Signing {
    certificate: String,
    key: String,
}

fn signing(daemon: &Daemon, name: &str) -> Signing {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let certificate = CertificateParams::new(vec![name.to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    Signing {
        certificate: daemon.file(&format!("{name}.pem"), certificate.pem().as_bytes()),
        key: daemon.file(&format!("{name}.key"), key.serialize_pem().as_bytes()),
    }
}

#[test]
fn signing_in_place_shows_in_pcr8_and_in_the_description_and_can_be_repeated() {
    let daemon = Daemon::none();
    let (one, two) = (
        signing(&daemon, "one"),
        signing(&daemon, "another-name-that-is-longer"),
    );
    let image = daemon.file("x.eif", &sound_image());
    let unsigned = run(&daemon, &["describe-eif", "--eif-path", &image]);
    assert_eq!((unsigned.status, unsigned.stderr.as_str()), (0, ""));
    for by in [&one, &two, &one] {
        let signed = run(
            &daemon,
            &[
                "sign-eif",
                "--eif-path",
                &image,
                "--signing-certificate",
                &by.certificate,
                "--private-key",
                &by.key,
            ],
        );
        assert_eq!(signed.status, 0, "{}", signed.stderr);
        let pcr8 =
            run(&daemon, &["pcr", "--signing-certificate", &by.certificate]).json()["PCR8"].clone();
        let described = run(&daemon, &["describe-eif", "--eif-path", &image]);
        assert_eq!(described.stderr, "");
        let described = described.json();
        assert_eq!(
            (
                &signed.json()["Measurements"],
                &described["Measurements"]["PCR8"]
            ),
            (&described["Measurements"], &pcr8)
        );
        assert_eq!(
            described["Measurements"]["PCR0"],
            unsigned.json()["Measurements"]["PCR0"]
        );
        assert_eq!(
            (&described["IsSigned"], &described["SignatureCheck"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(
            described["SigningCertificate"]["Algorithm"],
            "ecdsa-with-SHA384"
        );
    }
}

#[test]
fn a_file_of_which_the_parts_do_not_belong_together_is_e60() {
    let daemon = Daemon::none();
    let (one, two) = (signing(&daemon, "one"), signing(&daemon, "two"));
    let image = daemon.file("x.eif", &golden());
    let sign = |certificate: &str, key: &str| {
        run(
            &daemon,
            &[
                "sign-eif",
                "--eif-path",
                &image,
                "--signing-certificate",
                certificate,
                "--private-key",
                key,
            ],
        )
    };
    assert_eq!(sign(&one.certificate, &two.key).status, 60);
    assert_eq!(sign(&one.certificate, "/no/such.key").status, 60);
    let in_kms = sign(&one.certificate, "arn:aws:kms:us-east-1:000000000000:key/x");
    assert!(
        in_kms.status == 60 && in_kms.stderr.contains("hint: set AWS_ACCESS_KEY_ID"),
        "{}",
        in_kms.stderr
    );
    assert_eq!(std::fs::read(&image).unwrap(), golden());
}

#[test]
fn pcr_agrees_with_awss_builder() {
    let daemon = Daemon::none();
    let whole = daemon.file("whole", b"kernelcmdlineramdisk0ramdisk1ramdisk2");
    assert_eq!(
        run(&daemon, &["pcr", "--input", &whole]).stdout,
        format!("{{\n  \"PCR\": \"{PCR0}\"\n}}\n")
    );
    let boot = daemon.file("boot", b"kernelcmdlineramdisk0");
    assert_eq!(
        run(&daemon, &["pcr", "--input", &boot]).json(),
        json!({ "PCR": PCR1 })
    );
    let app = daemon.file("app", b"ramdisk1ramdisk2");
    assert_eq!(
        run(&daemon, &["pcr", "--input", &app]).json(),
        json!({ "PCR": PCR2 })
    );
    let signing = signing(&daemon, "one");
    let pcr8 = run(
        &daemon,
        &["pcr", "--signing-certificate", &signing.certificate],
    )
    .json();
    assert_eq!(pcr8["PCR8"].as_str().map(str::len), Some(96));
    let wrong = run(&daemon, &["pcr", "--signing-certificate", &signing.key]);
    assert!(
        wrong.status == 57 && wrong.stderr.contains("PRIVATE KEY"),
        "{}",
        wrong.stderr
    );
    assert_eq!(run(&daemon, &["pcr", "--input", "/no/such"]).status, 19);
    let both = [&signing.certificate, &signing.key].map(|path| std::fs::read(path).unwrap());
    let both = daemon.file("both.pem", &both.concat());
    assert_eq!(
        run(&daemon, &["pcr", "--signing-certificate", &both]).json(),
        pcr8
    );
}
