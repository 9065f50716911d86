use super::super::testing::{Parts, Shape};
use super::*;
use proptest::prelude::*;
use std::sync::LazyLock;

static KEY: LazyLock<RecipientKey> = LazyLock::new(|| RecipientKey::generate().unwrap());

/// A reply of AWS KMS, as the tests of aws-nitro-enclaves-sdk-c record it. Its private key is not public: what
/// can be checked is that it is read.
const AWS_REPLY: &str = "\
    308006092a864886f70d010703a08030800201023182016b308201670201028020\
    7087b55df94ba3255cdf3c01840a2aa3ec93620625d601cf56f97bde7a3d2eb1\
    303c06092a864886f70d010107302fa00f300d06096086480165030402010500\
    a11c301a06092a864886f70d010108300d06096086480165030402010500\
    04820100\
    a0614593a030ee336bfff076618b0130d045de9f4d183d83c5da882f13abc1f4\
    bf0d13645869393442ab582e6a04d697d52d5623e367e7e92db6ebd2bd07735b\
    153f2826bee5df8e16c713a1e85cb6ba85e88681335c7e941a94abf0c0113e03\
    0916e2b6e1826db4ffb919b8e1b6f59ec277e58de40b0ffeecaa0d94fbcb2903\
    74ed3dfc35d31a8f43ae1300fe20fdd986d4b8565657451f9dc693e134678920\
    221c58a28da5e71ab6b31caa445825a6385c6c4f5d5d5ebbc2c2570e9647fded\
    36b559647bcb27e58886255f582c63d863ecec307d15763abce0b1b812a55093\
    8ca4e2d28a74563db52367558d3e2e82ac2a27fe5c9391a007c15f75b90ab0dd\
    308006092a864886f70d010701301d060960864801650304012a0410\
    688c6d5f7f31b0fecedf09f2e7c99ac9\
    a0800430\
    70e5caaffd49ad24efe15bf903be9d19895b777d269b57b025f6f67e7ef93f94\
    464515f2ebe034ea0b7621a1ff19292e\
    00000000000000000000";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn awss_own_reply_is_read() {
    let bytes = bytes(AWS_REPLY);
    assert_eq!(bytes.len(), 493);
    let envelope = parse(&bytes).unwrap();
    assert_eq!((envelope.key.len(), envelope.content.len()), (256, 48));
    assert_eq!(
        (envelope.key[0], envelope.iv[0], envelope.content[0]),
        (0xa0, 0x68, 0x70)
    );
    assert!(matches!(open(&bytes, &KEY), Err(CmsError::Decrypt)));
}

#[test]
fn every_shape_opens() {
    for plaintext in [&b"x"[..], &[7; 32], &[9; 1217]] {
        let parts = Parts::seal(KEY.public(), plaintext);
        for shape in [
            Shape::Pieces(1000),
            Shape::Pieces(16),
            Shape::Primitive,
            Shape::Der,
        ] {
            assert_eq!(
                *open(&parts.encode(shape), &KEY).unwrap(),
                plaintext,
                "{shape:?}"
            );
        }
    }
}

#[test]
fn another_requests_key_opens_nothing() {
    let other = RecipientKey::generate().unwrap();
    let sealed = Parts::seal(other.public(), b"secret").encode(Shape::Primitive);
    assert!(matches!(open(&sealed, &KEY), Err(CmsError::Decrypt)));
}

#[test]
fn other_algorithms_and_recipients_are_refused() {
    let good = Parts::seal(KEY.public(), b"secret");
    let spoilt = |spoil: fn(&mut Parts)| {
        let mut parts = good.clone();
        spoil(&mut parts);
        open(&parts.encode(Shape::Primitive), &KEY).unwrap_err()
    };
    assert!(matches!(
        spoilt(|p| p.content_type = DATA.to_vec()),
        CmsError::Algorithm(_)
    ));
    assert!(matches!(
        spoilt(|p| p.hash = MGF1.to_vec()),
        CmsError::Algorithm("hash")
    ));
    assert!(matches!(
        spoilt(|p| p.cipher = SHA256.to_vec()),
        CmsError::Algorithm(_)
    ));
    assert!(matches!(
        spoilt(|p| p.iv = vec![0; 12]),
        CmsError::Algorithm(_)
    ));
    assert!(matches!(spoilt(|p| p.recipients = 0), CmsError::Recipients));
    assert!(matches!(spoilt(|p| p.recipients = 2), CmsError::Recipients));
    assert!(matches!(
        spoilt(|p| p.key = vec![1; 255]),
        CmsError::Decrypt
    ));
    assert!(matches!(
        spoilt(|p| p.content = vec![1; 15]),
        CmsError::Decrypt
    ));
    assert!(matches!(spoilt(|p| p.content = vec![]), CmsError::Decrypt));
}

#[test]
fn bytes_behind_the_envelope_are_refused() {
    let mut sealed = Parts::seal(KEY.public(), b"secret").encode(Shape::Primitive);
    sealed.push(0);
    assert!(matches!(
        open(&sealed, &KEY),
        Err(CmsError::Structure(BerError::Trailing))
    ));
}

proptest! {
    /// Whatever a KMS sends: an answer or an error, never a panic.
    #[test]
    fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(parse(&bytes).is_err());
    }

    /// Every truncation and every flipped byte of AWS's reply is survived.
    #[test]
    fn damaged_replies_are_survived(cut in 0_usize..493, at in 0_usize..493, flip in 1_u8..) {
        let mut reply = bytes(AWS_REPLY);
        prop_assert!(parse(&reply[..cut]).is_err());
        reply[at] ^= flip;
        let _ = parse(&reply);
    }

    /// What is sealed opens again, in whatever pieces it came.
    #[test]
    fn sealed_is_opened(
        plaintext in proptest::collection::vec(any::<u8>(), 0..300),
        piece in 1_usize..64,
    ) {
        let sealed = Parts::seal(KEY.public(), &plaintext).encode(Shape::Pieces(piece));
        prop_assert_eq!(&*open(&sealed, &KEY).unwrap(), &plaintext);
    }
}
