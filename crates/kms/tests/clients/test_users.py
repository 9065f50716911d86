"""Libraries that use KMS and know nothing of Enclos, beside credstash: what they sign and seal, others check."""

import boto3
import kmsauth
import pytest
import tink
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, AWSSigner, Signer
from tink import aead
from tink.integration import awskms


def alias(kms, name, **wanted):
    """A new key's id, and an alias of it."""
    key = kms.create_key(**wanted)["KeyMetadata"]["KeyId"]
    kms.create_alias(AliasName=f"alias/{name}", TargetKeyId=key)
    return key, f"alias/{name}"


def test_tink_seals_under_our_key_and_opens_nothing_else(kms):
    aead.register()
    uris = [f"aws-kms://{kms.create_key()['KeyMetadata']['Arn']}" for _ in range(2)]
    own, other = [awskms.new_client(boto3_client=kms, key_uri=uri).get_aead(uri) for uri in uris]
    sealed = own.encrypt(b"secret", b"for whom")
    assert b"secret" not in sealed and own.decrypt(sealed, b"for whom") == b"secret"
    for text, associated in [(sealed, b"for another"), (sealed[:-1], b"for whom"), (b"", b"for whom")]:
        with pytest.raises(tink.TinkError):
            own.decrypt(text, associated)
    with pytest.raises(tink.TinkError, match="IncorrectKeyException"):
        other.decrypt(sealed, b"for whom")
    envelope = aead.KmsEnvelopeAead(aead.aead_key_templates.AES256_GCM, own)
    text = b"long" * 10_000
    assert envelope.decrypt(envelope.encrypt(text, b"for whom"), b"for whom") == text


@pytest.mark.parametrize(
    "spec,schemes",
    [
        ("RSA_2048", ["rsassa-pss-sha256", "rsassa-pss-sha512", "rsa-pkcs1v15-sha256", "rsa-pkcs1v15-sha512"]),
        ("ECC_NIST_P256", ["ecdsa-sha2-nistp256"]),
        ("ECC_NIST_P384", ["ecdsa-sha2-nistp384"]),
    ],
)
def test_securesystemslib_signs_metadata(kms, monkeypatch, spec, schemes):
    """The signer of TUF and in-toto, which checks the signatures by itself."""
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, AWSSigner.SCHEME, AWSSigner)
    _, name = alias(kms, f"tuf-{spec}", KeySpec=spec, KeyUsage="SIGN_VERIFY")
    for scheme in schemes:
        uri, public = AWSSigner.import_(name, scheme)
        signature = Signer.from_priv_key_uri(uri, public).sign(b"metadata")
        public.verify_signature(signature, b"metadata")
        with pytest.raises(UnverifiedSignatureError):
            public.verify_signature(signature, b"other metadata")
    # It takes the first algorithm of the key that it knows.
    assert AWSSigner.import_(name)[1].scheme in schemes


def test_kmsauth_tokens_are_for_whom_they_say(kms):
    """Identity by encryption context: who may encrypt under it is who the token says."""
    key, name = alias(kms, "authnz")
    region = boto3.session.Session().region_name
    says = {"from": "web", "to": "database", "user_type": "service"}
    token = kmsauth.KMSTokenGenerator(key, says, region).get_token()
    validator = kmsauth.KMSTokenValidator(name, name, "database", region)
    assert validator.decrypt_token("2/service/web", token)["key_alias"] == name
    with pytest.raises(kmsauth.TokenValidationError):
        validator.decrypt_token("2/service/another", token)


def test_ethereum_signatures_recover_the_key(kms, node):
    key = kms.create_key(KeySpec="ECC_SECG_P256K1", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    node("ethereum", key)
