//! The KMS's side of an envelope, for tests: in the shape of AWS, and in others that must be read too.

use aws_lc_rs::cipher::{AES_256, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};

/// How an envelope is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Indefinite lengths, the content in pieces of this many bytes: AWS's.
    Pieces(usize),
    /// Indefinite lengths, the content in one primitive piece.
    Primitive,
    /// DER.
    Der,
}

pub(crate) fn definite(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let mut bytes = vec![tag];
    match content.len() {
        len @ 0..0x80 => bytes.push(u8::try_from(len).unwrap()),
        len => {
            bytes.push(0x82);
            bytes.extend(u16::try_from(len).unwrap().to_be_bytes());
        }
    }
    bytes.extend(content);
    bytes
}

fn indefinite(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    [&[tag, 0x80], &parts.concat()[..], &[0, 0]].concat()
}

/// The parts of an envelope that tests want to spoil.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(crate) content_type: Vec<u8>,
    pub(crate) recipients: usize,
    pub(crate) hash: Vec<u8>,
    pub(crate) cipher: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) iv: Vec<u8>,
    pub(crate) content: Vec<u8>,
}

impl Parts {
    /// A good envelope's parts, for the public key in `spki`.
    pub(crate) fn seal(spki: &[u8], plaintext: &[u8]) -> Self {
        let secret = [0x42; 32];
        let public = PublicEncryptingKey::from_der(spki).unwrap();
        let public = OaepPublicEncryptingKey::new(public).unwrap();
        let mut key = vec![0; public.ciphertext_size()];
        public
            .encrypt(&OAEP_SHA256_MGF1SHA256, &secret, &mut key, None)
            .unwrap();
        let cipher = UnboundCipherKey::new(&AES_256, &secret).unwrap();
        let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(cipher).unwrap();
        let iv = [0x24; 16];
        let context = aws_lc_rs::cipher::EncryptionContext::Iv128(FixedLength::from(iv));
        let mut content = plaintext.to_vec();
        cipher.less_safe_encrypt(&mut content, context).unwrap();
        Self {
            content_type: super::cms::ENVELOPED_DATA.to_vec(),
            recipients: 1,
            hash: super::cms::SHA256.to_vec(),
            cipher: super::cms::AES_256_CBC.to_vec(),
            key,
            iv: iv.to_vec(),
            content,
        }
    }

    pub(crate) fn encode(&self, shape: Shape) -> Vec<u8> {
        let open = if shape == Shape::Der {
            definite
        } else {
            indefinite
        };
        let version = [2, 1, 2];
        let hash = definite(0x30, &[&definite(6, &[&self.hash]), &[5, 0]]);
        let mask = definite(0x30, &[&definite(6, &[super::cms::MGF1]), &hash]);
        let parameters = definite(
            0x30,
            &[&definite(0xa0, &[&hash]), &definite(0xa1, &[&mask])],
        );
        let oaep = definite(
            0x30,
            &[&definite(6, &[super::cms::RSAES_OAEP]), &parameters],
        );
        let id = definite(0x80, &[&[7; 32]]);
        let key = definite(4, &[&self.key]);
        let recipient = definite(0x30, &[&version, &id, &oaep, &key]);
        let recipients = definite(0x31, &vec![&recipient[..]; self.recipients]);
        let cipher = definite(6, &[&self.cipher]);
        let cipher = definite(0x30, &[&cipher, &definite(4, &[&self.iv])]);
        let content = match shape {
            Shape::Pieces(len) => {
                let pieces: Vec<Vec<u8>> = self
                    .content
                    .chunks(len)
                    .map(|piece| definite(4, &[piece]))
                    .collect();
                indefinite(0xa0, &[&pieces.concat()])
            }
            Shape::Primitive | Shape::Der => definite(0x80, &[&self.content]),
        };
        let inner = open(
            0x30,
            &[&definite(6, &[super::cms::DATA]), &cipher, &content],
        );
        let enveloped = open(0x30, &[&version, &recipients, &inner]);
        let wrapper = open(0xa0, &[&enveloped]);
        open(0x30, &[&definite(6, &[&self.content_type]), &wrapper])
    }
}
