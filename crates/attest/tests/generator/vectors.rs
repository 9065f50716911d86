//! The list: good documents, and one broken one for each rule.

use super::certificates::*;
use super::documents::*;
use super::{Key, NOW, NOW_SECS};

/// What a verifier is asked, and what it must answer.
pub struct Vector {
    pub name: &'static str,
    /// The rule it is about, in words.
    pub rule: &'static str,
    pub bytes: Vec<u8>,
    /// Milliseconds.
    pub at: u64,
    pub max_age_seconds: u64,
    pub archival: bool,
    pub allow_debug: bool,
    /// `None`: accepted. Otherwise what our refusal says, in part.
    pub refusal: Option<&'static str>,
}

impl Vector {
    fn new(name: &'static str, rule: &'static str, bytes: Vec<u8>) -> Self {
        Self {
            name,
            rule,
            bytes,
            at: NOW,
            max_age_seconds: 300,
            archival: false,
            allow_debug: false,
            refusal: None,
        }
    }

    fn at(mut self, milliseconds: u64) -> Self {
        self.at = milliseconds;
        self
    }

    fn patient(mut self) -> Self {
        self.max_age_seconds = 10 * 365 * 24 * 3600;
        self
    }

    fn archival(mut self) -> Self {
        self.archival = true;
        self
    }

    fn allow_debug(mut self) -> Self {
        self.allow_debug = true;
        self
    }

    fn refused(mut self, refusal: &'static str) -> Self {
        self.refusal = Some(refusal);
        self
    }
}

/// The certificates of a good chain.
pub struct Authority {
    pub root: Certificate,
    pub region: Certificate,
    pub instance: Certificate,
    pub leaf: Certificate,
}

impl Authority {
    pub fn new() -> Self {
        Self {
            root: root(),
            region: Certificate::ca(2, "region.vectors", Some(1)),
            instance: Certificate::ca(3, "instance.vectors", Some(0)),
            leaf: Certificate::leaf(4),
        }
    }

    pub fn root_der(&self) -> Vec<u8> {
        self.root.sign(&self.root)
    }

    fn chain(&self) -> Chain {
        Chain::of(&[&self.root, &self.region, &self.instance, &self.leaf])
    }

    fn document(&self) -> Document {
        Document::new(&self.chain())
    }

    /// A document under another leaf.
    fn under(&self, leaf: &Certificate) -> Vec<u8> {
        Document::new(&Chain::of(&[
            &self.root,
            &self.region,
            &self.instance,
            leaf,
        ]))
        .signed()
    }

    /// A document under another CA between root and leaf.
    fn below(&self, ca: &Certificate) -> Vec<u8> {
        Document::new(&Chain::of(&[&self.root, ca, &self.leaf])).signed()
    }
}

fn root() -> Certificate {
    let mut root = Certificate::ca(1, "root.vectors", None);
    root.not_after = NOW_SECS + 20 * 365 * 24 * 3600;
    let identifier = key_identifier(&root.key.point());
    root.with(SUBJECT_KEY, false, tlv(0x04, &identifier))
}

pub fn all() -> Vec<Vector> {
    let authority = Authority::new();
    let groups = [
        good(&authority),
        envelopes(&authority),
        payloads(&authority),
        registers_of(&authority),
        times(&authority),
        bundles(&authority),
        issuers(&authority),
        leaves(&authority),
        encodings(&authority),
        signatures(&authority),
    ];
    groups.into_iter().flatten().collect()
}

fn good(authority: &Authority) -> Vec<Vector> {
    let document = || authority.document();
    let mut reversed = document();
    reversed.entries.reverse();
    let payload = document().payload();
    let indefinite = [&[0xbf], &payload[1..], &[0xff]].concat();
    let full = || bytes(&[0x5a; 1024]);
    let user: Vec<_> = registers()
        .into_iter()
        .chain([(16, vec![0x77; 48])])
        .collect();
    let debug: Vec<_> = registers()
        .into_iter()
        .map(|(i, v)| if i < 3 { (i, vec![0; 48]) } else { (i, v) })
        .collect();
    let short = Chain::of(&[&authority.root, &authority.leaf]);
    let identified = authority.region.clone().with(
        AUTHORITY_KEY,
        false,
        tlv(
            0x30,
            &tlv(0x80, &key_identifier(&authority.root.key.point())),
        ),
    );
    vec![
        Vector::new("good", "a document as AWS writes it", document().signed()),
        Vector::new(
            "good-tagged",
            "COSE_Sign1's tag 18 is optional",
            [vec![0xd2], document().signed()].concat(),
        ),
        Vector::new(
            "good-reordered",
            "keys come in any order",
            reversed.signed(),
        ),
        Vector::new(
            "good-indefinite",
            "maps may be of indefinite length",
            sign(&indefinite, &document().key),
        ),
        Vector::new(
            "good-without-optionals",
            "optional keys may be missing",
            document()
                .without("public_key")
                .without("user_data")
                .without("nonce")
                .signed(),
        ),
        Vector::new(
            "good-empty-optionals",
            "user_data and nonce may be empty",
            document()
                .set("user_data", bytes(&[]))
                .set("nonce", bytes(&[]))
                .signed(),
        ),
        Vector::new(
            "good-full-optionals",
            "public_key, user_data and nonce may have 1024 bytes",
            document()
                .set("public_key", full())
                .set("user_data", full())
                .set("nonce", full())
                .signed(),
        ),
        Vector::new(
            "good-pcr16",
            "locked user registers are in the document",
            document().set("pcrs", pcrs(&user)).signed(),
        ),
        Vector::new(
            "good-unknown-key",
            "keys of the future are skipped",
            document().with("future", vec![0x81, 0xa0]).signed(),
        ),
        Vector::new(
            "good-short-chain",
            "a root may issue leaves",
            Document::new(&short).signed(),
        ),
        Vector::new(
            "good-key-identifiers",
            "key identifiers that match",
            authority.below(&identified),
        ),
        Vector::new(
            "good-unknown-extension",
            "extensions that are not critical are skipped",
            authority.under(&authority.leaf.clone().with(NOBODYS, false, tlv(0x30, &[]))),
        ),
        Vector::new("good-oldest", "exactly 300 s old", document().signed()).at(NOW + 300_000),
        Vector::new(
            "good-ahead",
            "exactly 5 s in the future",
            document().signed(),
        )
        .at(NOW - 5_000),
        Vector::new(
            "good-last-second",
            "the last second of the leaf's validity",
            document().signed(),
        )
        .at(NOW + 3 * 3_600_000 + 999)
        .patient(),
        Vector::new(
            "good-archival",
            "a record is judged at its own time",
            document().signed(),
        )
        .at(NOW + 365 * 24 * 3_600_000)
        .archival(),
        Vector::new(
            "good-debug-allowed",
            "debug documents with permission",
            document().set("pcrs", pcrs(&debug)).signed(),
        )
        .allow_debug(),
    ]
}

fn envelopes(authority: &Authority) -> Vec<Vector> {
    let document = authority.document();
    let (good, payload) = (document.signed(), document.payload());
    let signature = document.key.sign(&sig_structure(b"", &payload));
    let protected = |protected: &[u8]| envelope(protected, &[0xa0], &bytes(&payload), &signature);
    let with = |unprotected: &[u8], payload: &[u8], signature: &[u8]| {
        envelope(ES384, unprotected, payload, signature)
    };
    let inner = bytes(&payload);
    let elements = |elements: &[Vec<u8>]| array(elements);
    let four = [bytes(ES384), vec![0xa0], inner.clone(), bytes(&signature)];
    let padding = document.clone().with("padding", bytes(&vec![0; 16_384]));
    vec![
        Vector::new("empty", "there is a document", Vec::new()).refused("COSE_Sign1 envelope"),
        Vector::new(
            "truncated",
            "the document is whole",
            good[..good.len() - 1].to_vec(),
        )
        .refused("COSE_Sign1 envelope"),
        Vector::new(
            "trailing-byte",
            "nothing follows the document",
            [good.clone(), vec![0]].concat(),
        )
        .refused("COSE_Sign1 envelope"),
        Vector::new(
            "tag-17",
            "no other tag",
            [vec![0xd1], good.clone()].concat(),
        )
        .refused("COSE_Sign1 envelope"),
        Vector::new(
            "tag-twice",
            "one tag",
            [vec![0xd2, 0xd2], good.clone()].concat(),
        )
        .refused("COSE_Sign1 envelope"),
        Vector::new("three-elements", "four elements", elements(&four[..3]))
            .refused("COSE_Sign1 envelope"),
        Vector::new(
            "five-elements",
            "four elements",
            elements(&[&four[..], &[vec![0x40]]].concat()),
        )
        .refused("COSE_Sign1 envelope"),
        Vector::new("a-map", "an array", [&[0xa2], &four.concat()[..]].concat())
            .refused("COSE_Sign1 envelope"),
        Vector::new("alg-es256", "ES384 only", protected(&[0xa1, 0x01, 0x26]))
            .refused("protected header is a10126"),
        Vector::new(
            "alg-es512",
            "ES384 only",
            protected(&[0xa1, 0x01, 0x38, 0x23]),
        )
        .refused("protected header is a1013823"),
        Vector::new(
            "alg-emulator",
            "ES384 only (QEMU writes -1)",
            protected(&[0xa1, 0x01, 0x20]),
        )
        .refused("protected header is a10120"),
        Vector::new("alg-absent", "ES384 only", protected(&[])).refused("protected header is ,"),
        Vector::new(
            "protected-kid",
            "nothing but the algorithm",
            protected(&[0xa2, 0x01, 0x38, 0x22, 0x04, 0x40]),
        )
        .refused("protected header is a2"),
        Vector::new(
            "unprotected-entry",
            "nothing unsigned",
            with(&[0xa1, 0x04, 0x40], &inner, &signature),
        )
        .refused("unprotected header has 1"),
        Vector::new(
            "payload-detached",
            "the payload is there",
            with(&[0xa0], NULL, &signature),
        )
        .refused("COSE_Sign1 envelope"),
        Vector::new(
            "signature-short",
            "96 bytes of signature",
            with(&[0xa0], &inner, &signature[..95]),
        )
        .refused("95 bytes"),
        Vector::new(
            "signature-der",
            "r and s, not DER",
            with(
                &[0xa0],
                &inner,
                &document.key.sign_der(&sig_structure(b"", &payload)),
            ),
        )
        .refused("expected 96"),
        Vector::new("too-long", "at most 16640 bytes", padding.signed())
            .refused("expected at most 16640"),
    ]
}

fn payloads(authority: &Authority) -> Vec<Vector> {
    let document = authority.document();
    let set = |key: &str, value: Vec<u8>| document.clone().set(key, value).signed();
    let without = |key: &str| document.clone().without(key).signed();
    let long = || bytes(&[1; 1025]);
    let with_bundle = |certificate: Vec<u8>| {
        let root = bytes(&authority.root_der());
        set("cabundle", array(&[root, certificate]))
    };
    let trailing = [document.payload(), vec![0]].concat();
    let nine: Vec<_> = (0..9).map(|_| bytes(&authority.root_der())).collect();
    vec![
        Vector::new(
            "payload-trailing-byte",
            "nothing follows the payload",
            sign(&trailing, &document.key),
        )
        .refused("its payload"),
        Vector::new(
            "payload-array",
            "the payload is a map",
            sign(&array(&[text("module_id")]), &document.key),
        )
        .refused("its payload"),
        Vector::new(
            "key-twice",
            "no key twice",
            document.clone().with("nonce", bytes(&[1])).signed(),
        )
        .refused("its payload"),
        Vector::new(
            "key-bytes",
            "keys are text",
            sign(
                &[vec![0xa1], bytes(b"digest"), text("SHA384")].concat(),
                &document.key,
            ),
        )
        .refused("its payload"),
        Vector::new(
            "module-id-missing",
            "module_id is there",
            without("module_id"),
        )
        .refused("lacks module_id"),
        Vector::new(
            "module-id-empty",
            "module_id is not empty",
            set("module_id", text("")),
        )
        .refused("module_id is 0 bytes"),
        Vector::new(
            "module-id-bytes",
            "module_id is text",
            set("module_id", bytes(b"i-1-enc1")),
        )
        .refused("its payload"),
        Vector::new("digest-missing", "digest is there", without("digest")).refused("lacks digest"),
        Vector::new(
            "digest-sha256",
            "digest is SHA384",
            set("digest", text("SHA256")),
        )
        .refused("digest is \"SHA256\""),
        Vector::new(
            "timestamp-missing",
            "timestamp is there",
            without("timestamp"),
        )
        .refused("lacks timestamp"),
        Vector::new(
            "timestamp-zero",
            "timestamp is not 0",
            set("timestamp", vec![0]),
        )
        .refused("timestamp is 0"),
        Vector::new(
            "timestamp-negative",
            "timestamp is not negative",
            set("timestamp", vec![0x20]),
        )
        .refused("its payload"),
        Vector::new(
            "timestamp-text",
            "timestamp is a number",
            set("timestamp", text("now")),
        )
        .refused("its payload"),
        Vector::new(
            "certificate-missing",
            "certificate is there",
            without("certificate"),
        )
        .refused("lacks certificate"),
        Vector::new(
            "certificate-null",
            "certificate is not null",
            set("certificate", NULL.to_vec()),
        )
        .refused("its payload"),
        Vector::new(
            "certificate-empty",
            "certificate is not empty",
            set("certificate", bytes(&[])),
        )
        .refused("certificate is 0 bytes"),
        Vector::new(
            "certificate-long",
            "certificate has at most 1024 bytes",
            set("certificate", long()),
        )
        .refused("certificate is 1025"),
        Vector::new("cabundle-missing", "cabundle is there", without("cabundle"))
            .refused("lacks cabundle"),
        Vector::new(
            "cabundle-empty",
            "cabundle is not empty",
            set("cabundle", array(&[])),
        )
        .refused("cabundle has 0"),
        Vector::new(
            "cabundle-nine",
            "cabundle has at most 8 members",
            set("cabundle", array(&nine)),
        )
        .refused("cabundle has 9"),
        Vector::new(
            "cabundle-member-empty",
            "members are not empty",
            with_bundle(bytes(&[])),
        )
        .refused("cabundle is 0 bytes"),
        Vector::new(
            "cabundle-member-long",
            "members have at most 1024 bytes",
            with_bundle(long()),
        )
        .refused("cabundle is 1025"),
        Vector::new(
            "public-key-empty",
            "public_key is not empty",
            set("public_key", bytes(&[])),
        )
        .refused("public_key is 0"),
        Vector::new(
            "public-key-long",
            "public_key has at most 1024 bytes",
            set("public_key", long()),
        )
        .refused("public_key is 1025"),
        Vector::new(
            "user-data-long",
            "user_data has at most 1024 bytes",
            set("user_data", long()),
        )
        .refused("user_data is 1025"),
        Vector::new(
            "nonce-long",
            "nonce has at most 1024 bytes",
            set("nonce", long()),
        )
        .refused("nonce is 1025"),
        Vector::new("nonce-text", "nonce is bytes", set("nonce", text("nonce")))
            .refused("its payload"),
    ]
}

fn registers_of(authority: &Authority) -> Vec<Vector> {
    let document = authority.document();
    let set = |registers: &[(u64, Vec<u8>)]| document.clone().set("pcrs", pcrs(registers)).signed();
    let value = || vec![7; 48];
    let sized = |len: usize| set(&[(0, vec![7; len]), (1, value()), (2, value())]);
    let zero = |index: u64| {
        let registers = registers().into_iter();
        set(&registers
            .map(|(i, v)| if i == index { (i, vec![0; 48]) } else { (i, v) })
            .collect::<Vec<_>>())
    };
    let missing = |index: u64| {
        set(&registers()
            .into_iter()
            .filter(|(i, _)| *i != index)
            .collect::<Vec<_>>())
    };
    let many: Vec<_> = (0..33).map(|index| (index, value())).collect();
    let tpm = document
        .clone()
        .without("pcrs")
        .with("nitrotpm_pcrs", pcrs(&registers()));
    let both = document.clone().with("nitrotpm_pcrs", pcrs(&registers()));
    let negative = [vec![0xa1, 0x20], bytes(&value())].concat();
    vec![
        Vector::new(
            "pcrs-missing",
            "pcrs is there",
            document.clone().without("pcrs").signed(),
        )
        .refused("lacks pcrs"),
        Vector::new("pcrs-empty", "there are registers", set(&[])).refused("pcrs has 0"),
        Vector::new("pcrs-33", "at most 32 registers", set(&many)).refused("pcrs has 33"),
        Vector::new(
            "pcr-32",
            "registers are 0 to 31",
            set(&[(0, value()), (1, value()), (2, value()), (32, value())]),
        )
        .refused("register 32"),
        Vector::new(
            "pcr-negative",
            "registers are 0 to 31",
            document.clone().set("pcrs", negative).signed(),
        )
        .refused("its payload"),
        Vector::new(
            "pcr-twice",
            "no register twice",
            set(&[(0, value()), (1, value()), (2, value()), (2, value())]),
        )
        .refused("its payload"),
        Vector::new("pcr-32-bytes", "48 bytes each", sized(32)).refused("PCR0 is 32 bytes"),
        Vector::new("pcr-47-bytes", "48 bytes each", sized(47)).refused("PCR0 is 47 bytes"),
        Vector::new("pcr-64-bytes", "48 bytes each", sized(64)).refused("PCR0 is 64 bytes"),
        Vector::new("nitrotpm", "not a NitroTPM's document", tpm.signed()).refused("NitroTPM"),
        Vector::new(
            "nitrotpm-and-pcrs",
            "not a NitroTPM's document",
            both.signed(),
        )
        .refused("NitroTPM"),
        Vector::new("debug-pcr0", "no debug enclave without permission", zero(0))
            .refused("debug enclave (PCR0"),
        Vector::new("debug-pcr1", "no debug enclave without permission", zero(1))
            .refused("debug enclave (PCR1"),
        Vector::new("debug-pcr2", "no debug enclave without permission", zero(2))
            .refused("debug enclave (PCR2"),
        Vector::new("pcr0-absent", "an absent register is not zero", missing(0))
            .allow_debug()
            .refused("PCR0 is not in"),
        Vector::new("pcr1-absent", "an absent register is not zero", missing(1))
            .allow_debug()
            .refused("PCR1 is not in"),
        Vector::new("pcr2-absent", "an absent register is not zero", missing(2))
            .allow_debug()
            .refused("PCR2 is not in"),
    ]
}

fn times(authority: &Authority) -> Vec<Vector> {
    let good = || authority.document().signed();
    let mut over = authority.region.clone();
    over.not_after = NOW_SECS - 1;
    let mut early = authority.leaf.clone();
    early.not_before = NOW_SECS + 1;
    let mut root = authority.root.clone();
    root.not_after = NOW_SECS - 1;
    let over_root = Document::new(&Chain::of(&[&root, &authority.leaf])).signed();
    let future = authority
        .document()
        .set("timestamp", head(0, u64::MAX))
        .signed();
    let before = authority
        .document()
        .set("timestamp", head(0, NOW - 3_600_001))
        .signed();
    vec![
        Vector::new("old", "at most 300 s old", good())
            .at(NOW + 300_001)
            .refused("expected at most 300"),
        Vector::new("future", "at most 5 s in the future", good())
            .at(NOW - 5_001)
            .refused("set the clocks"),
        Vector::new("future-for-ever", "a timestamp that overflows", future)
            .archival()
            .refused("set the clocks"),
        Vector::new("leaf-expired", "the leaf is valid now", good())
            .at(NOW + 3 * 3_600_000 + 1000)
            .patient()
            .refused("the signing certificate is not acceptable: it is valid until"),
        Vector::new(
            "leaf-not-yet",
            "the leaf is valid now",
            authority.under(&early),
        )
        .refused("the signing certificate is not acceptable: it is valid from"),
        Vector::new(
            "ca-expired",
            "every CA is valid now",
            authority.below(&over),
        )
        .refused("cabundle[1] is not acceptable: it is valid until"),
        Vector::new(
            "root-expired",
            "the root is valid now, and is the trusted one",
            over_root,
        )
        .refused("is not trusted"),
        Vector::new(
            "archival-outside-leaf",
            "a record's time is within its leaf's validity",
            before,
        )
        .archival()
        .refused("it is valid from"),
    ]
}

fn bundles(authority: &Authority) -> Vec<Vector> {
    let Authority {
        region,
        instance,
        leaf,
        ..
    } = authority;
    let good = authority.chain();
    let with = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut chain = good.clone();
        change(&mut chain.cabundle);
        Document::new(&chain).signed()
    };
    let other = Certificate::ca(11, "root.vectors", None);
    let foreign = Chain::of(&[&other, region, instance, leaf]);
    let mut masked = foreign.clone();
    masked.cabundle[0] = authority.root_der();
    let renamed = Chain {
        certificate: leaf.sign_as("somebody.else", &instance.key),
        ..good.clone()
    };
    let identified = |key: &Key| {
        region.clone().with(
            AUTHORITY_KEY,
            false,
            tlv(0x30, &tlv(0x80, &key_identifier(&key.point()))),
        )
    };
    let stolen = Chain {
        certificate: leaf.sign_as("instance.vectors", &Key::new(12)),
        ..good.clone()
    };
    vec![
        Vector::new(
            "other-root",
            "the root is trusted",
            Document::new(&foreign).signed(),
        )
        .refused("is not trusted"),
        Vector::new(
            "root-in-front",
            "a trusted root in front of another's chain",
            Document::new(&masked).signed(),
        )
        .refused("cabundle[1] is not acceptable: its signature"),
        Vector::new(
            "bundle-reversed",
            "the bundle is root first",
            with(&|bundle| bundle.reverse()),
        )
        .refused("is not trusted"),
        Vector::new(
            "bundle-without-root",
            "the bundle begins with the root",
            with(&|bundle| drop(bundle.remove(0))),
        )
        .refused("is not trusted"),
        Vector::new(
            "bundle-gap",
            "no certificate is left out",
            with(&|bundle| drop(bundle.remove(1))),
        )
        .refused("cabundle[1] is not acceptable: its issuer"),
        Vector::new(
            "bundle-swapped",
            "each is signed by the one above",
            with(&|bundle| bundle.swap(1, 2)),
        )
        .refused("cabundle[1] is not acceptable: its issuer"),
        Vector::new(
            "bundle-root-only",
            "the leaf is signed by the last of the bundle",
            with(&|bundle| bundle.truncate(1)),
        )
        .refused("the signing certificate is not acceptable: its issuer"),
        Vector::new(
            "issuer-name",
            "names chain",
            Document::new(&renamed).signed(),
        )
        .refused("the signing certificate is not acceptable: its issuer"),
        Vector::new(
            "key-identifier",
            "key identifiers match",
            authority.below(&identified(&leaf.key)),
        )
        .refused("cabundle[1] is not acceptable: its authorityKeyIdentifier"),
        Vector::new(
            "leaf-signature",
            "the leaf is signed by its issuer's key",
            Document::new(&stolen).signed(),
        )
        .refused("the signing certificate is not acceptable: its signature"),
        Vector::new(
            "ca-signature",
            "each CA is signed by its issuer's key",
            with(&|bundle| {
                if let Some(last) = bundle[2].last_mut() {
                    *last ^= 1;
                }
            }),
        )
        .refused("cabundle[2] is not acceptable: its signature"),
    ]
}

fn issuers(authority: &Authority) -> Vec<Vector> {
    let Authority {
        root,
        region,
        instance,
        leaf,
    } = authority;
    let below = |ca: Certificate| authority.below(&ca);
    let ca = || Certificate::ca(5, "ca.vectors", Some(0));
    let long = Chain::of(&[root, instance, region, leaf]);
    let long_root = Chain::of(&[root, region, &ca(), instance, leaf]);
    vec![
        Vector::new(
            "ca-without-constraints",
            "issuers have basicConstraints",
            below(ca().without(BASIC)),
        )
        .refused("CA"),
        Vector::new(
            "ca-false",
            "issuers are CAs",
            below(ca().instead(BASIC, true, &tlv(0x30, &[]))),
        )
        .refused("CA"),
        Vector::new(
            "ca-is-leaf",
            "a leaf issues nothing",
            below(Certificate::leaf(6)),
        )
        .refused("CA"),
        Vector::new(
            "path-length-0",
            "pathLen 0 allows no CA below",
            Document::new(&long).signed(),
        )
        .refused("pathLenConstraint allows 0"),
        Vector::new(
            "path-length-1",
            "pathLen 1 allows one CA below",
            Document::new(&long_root).signed(),
        )
        .refused("pathLenConstraint allows 1"),
        Vector::new(
            "ca-without-usage",
            "issuers have keyUsage",
            below(ca().without(USAGE)),
        )
        .refused("keyCertSign"),
        Vector::new(
            "ca-usage-signature",
            "issuers may sign certificates",
            below(ca().instead(USAGE, true, DIGITAL_SIGNATURE)),
        )
        .refused("keyCertSign"),
        Vector::new(
            "ca-usage-crl",
            "issuers may sign certificates",
            below(ca().instead(USAGE, true, CRL_SIGN)),
        )
        .refused("keyCertSign"),
        Vector::new(
            "ca-critical-name-constraints",
            "critical extensions are understood or refused",
            below(ca().with(
                NAME_CONSTRAINTS,
                true,
                tlv(0x30, &tlv(0xa0, &tlv(0x30, &tlv(0x82, b"vectors")))),
            )),
        )
        .refused("critical extension 2.5.29.30"),
    ]
}

fn leaves(authority: &Authority) -> Vec<Vector> {
    let leaf = || authority.leaf.clone();
    let under = |leaf: Certificate| authority.under(&leaf);
    let path_len = tlv(0x30, &tlv(0x02, &[0]));
    vec![
        Vector::new(
            "leaf-is-ca",
            "the leaf is not a CA",
            under(leaf().instead(BASIC, true, &ca_constraints(None))),
        )
        .refused("CA:FALSE"),
        Vector::new(
            "leaf-path-length",
            "the leaf has no pathLen",
            under(leaf().instead(BASIC, true, &path_len)),
        )
        .refused("CA:FALSE"),
        Vector::new(
            "leaf-cert-sign",
            "the leaf may not sign certificates",
            under(leaf().instead(USAGE, false, SIGNATURE_AND_CERT_SIGN)),
        )
        .refused("no keyCertSign"),
        Vector::new(
            "leaf-without-usage",
            "the leaf has keyUsage",
            under(leaf().without(USAGE)),
        )
        .refused("digitalSignature"),
        Vector::new(
            "leaf-usage",
            "the leaf may sign",
            under(leaf().instead(USAGE, false, NON_REPUDIATION)),
        )
        .refused("digitalSignature"),
        Vector::new(
            "leaf-critical-extension",
            "critical extensions are understood or refused",
            under(leaf().with(NOBODYS, true, tlv(0x30, &[]))),
        )
        .refused("critical extension 1.3.6.1.4.1.99999.1"),
        Vector::new(
            "leaf-extension-twice",
            "no extension twice",
            under(leaf().with(USAGE, false, DIGITAL_SIGNATURE.to_vec())),
        )
        .refused("occurs twice"),
        Vector::new(
            "leaf-extension-broken",
            "extensions can be read",
            under(leaf().instead(BASIC, true, &[0x30, 0x01])),
        )
        .refused("cannot be read"),
    ]
}

fn encodings(authority: &Authority) -> Vec<Vector> {
    let leaf = || authority.leaf.clone();
    let under = |leaf: Certificate| authority.under(&leaf);
    let version = |version: Option<u8>| under(Certificate { version, ..leaf() });
    let sha256 = || algorithm(ECDSA_SHA256, &[]);
    let null = || algorithm(ECDSA_SHA384, &[0x05, 0x00]);
    let inner = |algorithm: Vec<u8>| Certificate {
        algorithm,
        ..leaf()
    };
    let outer = |outer_algorithm: Vec<u8>| Certificate {
        outer_algorithm,
        ..leaf()
    };
    let both = |algorithm: Vec<u8>| Certificate {
        outer_algorithm: algorithm.clone(),
        algorithm,
        ..leaf()
    };
    let mut off_curve = leaf().key.point();
    off_curve[96] ^= 1;
    let hybrid = [
        &[0x06 | (leaf().key.point()[96] & 1)],
        &leaf().key.point()[1..],
    ]
    .concat();
    let mut trailing = authority.chain();
    trailing.certificate.push(0);
    let mut not_der = authority.chain();
    not_der.cabundle[1] = b"not a certificate".to_vec();
    vec![
        Vector::new("version-1", "version 3", version(None)).refused("version is 1"),
        Vector::new("version-2", "version 3", version(Some(1))).refused("version is 2"),
        Vector::new(
            "algorithm-sha256",
            "ecdsa-with-SHA384",
            under(both(sha256())),
        )
        .refused("signature algorithm"),
        Vector::new(
            "algorithm-inner",
            "the same algorithm in both fields",
            under(inner(sha256())),
        )
        .refused("signature algorithm"),
        Vector::new(
            "algorithm-outer",
            "the same algorithm in both fields",
            under(outer(sha256())),
        )
        .refused("signature algorithm"),
        Vector::new(
            "algorithm-parameters",
            "ecdsa-with-SHA384 has no parameters",
            under(both(null())),
        )
        .refused("signature algorithm"),
        Vector::new(
            "key-p256",
            "P-384 keys only",
            under(leaf().with_spki(p256_spki())),
        )
        .refused("public key"),
        Vector::new(
            "key-compressed",
            "uncompressed points only",
            under(leaf().with_spki(spki(&leaf().key.compressed_point()))),
        )
        .refused("public key"),
        Vector::new(
            "key-hybrid",
            "uncompressed points only",
            under(leaf().with_spki(spki(&hybrid))),
        )
        .refused("public key"),
        Vector::new(
            "key-off-curve",
            "points on the curve only",
            under(leaf().with_spki(spki(&off_curve))),
        )
        .refused("public key"),
        Vector::new(
            "certificate-trailing-byte",
            "nothing follows a certificate",
            Document::new(&trailing).signed(),
        )
        .refused("not the DER"),
        Vector::new(
            "certificate-not-der",
            "certificates are DER",
            Document::new(&not_der).signed(),
        )
        .refused("not the DER"),
    ]
}

fn signatures(authority: &Authority) -> Vec<Vector> {
    let document = authority.document();
    let payload = document.payload();
    let raw =
        |payload: &[u8], signature: &[u8]| envelope(ES384, &[0xa0], &bytes(payload), signature);
    let altered = document.clone().set("nonce", bytes(&[1])).payload();
    let signature = document.key.sign(&sig_structure(b"", &payload));
    let context = array(&[text("Signature"), bytes(ES384), bytes(&[]), bytes(&payload)]);
    let swapped = [&signature[48..], &signature[..48]].concat();
    vec![
        Vector::new(
            "signed-by-another",
            "signed by the leaf's key",
            sign(&payload, &Key::new(9)),
        )
        .refused("altered or forged"),
        Vector::new(
            "signed-by-issuer",
            "signed by the leaf's key",
            sign(&payload, &authority.instance.key),
        )
        .refused("altered or forged"),
        Vector::new(
            "payload-altered",
            "the signature is over this payload",
            raw(&altered, &signature),
        )
        .refused("altered or forged"),
        Vector::new(
            "signature-zero",
            "r and s are not 0",
            raw(&payload, &[0; 96]),
        )
        .refused("altered or forged"),
        Vector::new(
            "signature-swapped",
            "r comes first",
            raw(&payload, &swapped),
        )
        .refused("altered or forged"),
        Vector::new(
            "context",
            "the context is Signature1",
            raw(&payload, &document.key.sign(&context)),
        )
        .refused("altered or forged"),
        Vector::new(
            "external-data",
            "no external data",
            raw(&payload, &document.key.sign(&sig_structure(b"x", &payload))),
        )
        .refused("altered or forged"),
        Vector::new(
            "payload-signed-bare",
            "the signature is over the Sig_structure",
            raw(&payload, &document.key.sign(&payload)),
        )
        .refused("altered or forged"),
    ]
}
