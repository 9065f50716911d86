"""Unmodified programs of AWS's, and users of KMS, against enclos-kms: what one wrote, another reads."""

import hashlib
import hmac
import os
import subprocess
import sys

import aws_encryption_sdk
import boto3
import pytest
from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
from aws_cryptographic_material_providers.mpl.models import CreateAwsKmsKeyringInput
from aws_encryption_sdk.exceptions import AWSEncryptionSDKClientError
from conftest import SCRIPTS, Refused, pairs, run

TEXT = bytes(range(256)) * 16  # 4096 bytes, the longest that AWS takes
CONTEXT = {"purpose": "test", "tenant": "blåbær=1"}
OTHER = {**CONTEXT, "purpose": "another"}
ROOT = "arn:aws:iam::000000000000:root"


def test_what_one_program_encrypts_every_other_decrypts(programs, key):
    for writer in programs.values():
        blob = writer.encrypt(key, TEXT, CONTEXT)
        assert TEXT not in blob
        for name, reader in programs.items():
            assert reader.decrypt(blob, CONTEXT) == TEXT, name


def test_another_encryption_context_is_every_programs_own_exception(programs, key):
    blob = programs["boto3"].encrypt(key, b"text", CONTEXT)
    for name, reader in programs.items():
        for context in [OTHER, {}]:
            with pytest.raises(Refused) as refused:
                reader.decrypt(blob, context)
            assert str(refused.value) == "InvalidCiphertextException", name


def test_the_javascript_sdks_own_types(node, key):
    node("checks", key)


def test_the_rust_sdks_own_types(rust, kms):
    # A key of its own, because it counts the key's grants.
    rust("checks", kms.create_key()["KeyMetadata"]["KeyId"])


def test_boto3_exceptions(kms, key):
    errors = kms.exceptions
    with pytest.raises(errors.NotFoundException):
        kms.describe_key(KeyId="alias/nowhere")
    with pytest.raises(errors.MalformedPolicyDocumentException):
        kms.put_key_policy(KeyId=key, PolicyName="default", Policy="{}")
    with pytest.raises(errors.DryRunOperationException):
        kms.encrypt(KeyId=key, Plaintext=b"x", DryRun=True)
    made = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.disable_key(KeyId=made)
    with pytest.raises(errors.DisabledException):
        kms.encrypt(KeyId=made, Plaintext=b"x")
    kms.schedule_key_deletion(KeyId=made, PendingWindowInDays=7)
    with pytest.raises(errors.KMSInvalidStateException):
        kms.enable_key(KeyId=made)
    seen = [entry["KeyId"] for page in kms.get_paginator("list_keys").paginate(Limit=1) for entry in page["Keys"]]
    assert made in seen and len(seen) == len(set(seen))


def test_a_grants_token_decrypts_and_retires(kms, key):
    made = kms.create_grant(
        KeyId=key,
        GranteePrincipal=ROOT,
        RetiringPrincipal=ROOT,
        Operations=["Decrypt", "RetireGrant"],
        Constraints={"EncryptionContextSubset": {"purpose": "test"}},
    )
    listed = kms.list_retirable_grants(RetiringPrincipal=ROOT)["Grants"]
    assert [grant["GrantId"] for grant in listed] == [made["GrantId"]]
    blob = kms.encrypt(KeyId=key, Plaintext=b"x", EncryptionContext=CONTEXT)["CiphertextBlob"]
    opened = kms.decrypt(CiphertextBlob=blob, EncryptionContext=CONTEXT, GrantTokens=[made["GrantToken"]])
    assert (opened["Plaintext"], opened["KeyId"]) == (b"x", key)
    kms.retire_grant(GrantToken=made["GrantToken"])
    assert kms.list_retirable_grants(RetiringPrincipal=ROOT)["Grants"] == []
    assert boto3.client("sts").get_caller_identity()["Arn"] == ROOT


@pytest.mark.parametrize("spec,algorithm", [("RSA_2048", "RSASSA_PSS_SHA_256"), ("ECC_NIST_P256", "ECDSA_SHA_256")])
def test_openssl_verifies_what_kms_signs(kms, node, rust, tmp_path, spec, algorithm):
    key = kms.create_key(KeySpec=spec, KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    message = tmp_path / "message"
    message.write_bytes(b"a message for OpenSSL")
    signatures = [kms.sign(KeyId=key, Message=message.read_bytes(), SigningAlgorithm=algorithm)["Signature"]]
    if spec == "ECC_NIST_P256":
        signatures.append(rust("sign", key, stdin=message.read_bytes()))
    public = tmp_path / "public.der"
    public.write_bytes(kms.get_public_key(KeyId=key)["PublicKey"])
    verify = ["openssl", "dgst", "-sha256", "-keyform", "DER", "-verify", public, "-signature", tmp_path / "signature"]
    if "PSS" in algorithm:
        verify += ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"]
    for signature in signatures:
        (tmp_path / "signature").write_bytes(signature)
        assert b"Verified OK" in run([*verify, message])
        (tmp_path / "signature").write_bytes(signature[:-1] + bytes([signature[-1] ^ 1]))
        assert subprocess.run([*verify, message], capture_output=True, check=False).returncode != 0


def test_kms_verifies_and_decrypts_what_openssl_made(kms, tmp_path):
    key = kms.create_key(KeySpec="RSA_2048", KeyUsage="ENCRYPT_DECRYPT")["KeyMetadata"]["KeyId"]
    public = tmp_path / "public.der"
    public.write_bytes(kms.get_public_key(KeyId=key)["PublicKey"])
    options = ["-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", "rsa_mgf1_md:sha256"]
    blob = run(["openssl", "pkeyutl", "-encrypt", "-pubin", "-keyform", "DER", "-inkey", public, *options], b"from OpenSSL")
    answer = kms.decrypt(KeyId=key, CiphertextBlob=blob, EncryptionAlgorithm="RSAES_OAEP_SHA_256")
    assert answer["Plaintext"] == b"from OpenSSL"


def test_imported_material_makes_the_macs_that_python_makes(kms):
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding

    key = kms.create_key(KeySpec="HMAC_256", KeyUsage="GENERATE_VERIFY_MAC", Origin="EXTERNAL")["KeyMetadata"]["KeyId"]
    wrap = {"WrappingAlgorithm": "RSAES_OAEP_SHA_256", "WrappingKeySpec": "RSA_2048"}
    parameters = kms.get_parameters_for_import(KeyId=key, **wrap)
    material = os.urandom(32)
    oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
    wrapped = serialization.load_der_public_key(parameters["PublicKey"]).encrypt(material, oaep)
    imported = {"EncryptedKeyMaterial": wrapped, "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}
    kms.import_key_material(KeyId=key, ImportToken=parameters["ImportToken"], **imported)
    made = kms.generate_mac(KeyId=key, Message=b"message", MacAlgorithm="HMAC_SHA_256")["Mac"]
    assert made == hmac.new(material, b"message", hashlib.sha256).digest()


def keyring(key):
    providers = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())
    wanted = CreateAwsKmsKeyringInput(kms_key_id=key, kms_client=boto3.client("kms"))
    return providers.create_aws_kms_keyring(input=wanted)


def test_the_encryption_sdks_read_each_others_messages(node, key):
    sdk = aws_encryption_sdk.EncryptionSDKClient()
    text = os.urandom(100_000)
    message, header = sdk.encrypt(source=text, keyring=keyring(key), encryption_context=CONTEXT)
    assert CONTEXT.items() <= header.encryption_context.items() and text[:64] not in message
    assert node("esdk-decrypt", key, *pairs(CONTEXT), stdin=message) == text
    message = node("esdk-encrypt", key, *pairs(CONTEXT), stdin=text)
    opened, header = sdk.decrypt(source=message, keyring=keyring(key))
    assert opened == text and CONTEXT.items() <= header.encryption_context.items()


def test_the_encryption_cli_reads_what_the_sdks_wrote(kms, node, key, tmp_path):
    text = os.urandom(100_000)
    files = {name: tmp_path / name for name in ["plain", "message", "opened", "metadata"]}
    files["plain"].write_bytes(text)

    def cli(action, source, target, *more):
        command = [os.environ["ENCLOS_ENCRYPTION_CLI"], action, "--input", files[source], "--output", files[target]]
        command += ["--wrapping-keys", f"key={key}", "--encryption-context", *pairs(CONTEXT), *more]
        return subprocess.run(command, capture_output=True, timeout=120, check=False, text=True)

    done = cli("--encrypt", "plain", "message", "--metadata-output", files["metadata"])
    assert done.returncode == 0, done.stderr
    assert text[:64] not in files["message"].read_bytes()
    assert node("esdk-decrypt", key, *pairs(CONTEXT), stdin=files["message"].read_bytes()) == text
    files["message"].write_bytes(node("esdk-encrypt", key, *pairs(CONTEXT), stdin=text))
    done = cli("--decrypt", "message", "opened", "--suppress-metadata")
    assert done.returncode == 0, done.stderr
    assert files["opened"].read_bytes() == text
    # It asks for the context that is named, and for a key that may be used.
    (tmp_path / "opened").unlink()
    kms.disable_key(KeyId=key)
    try:
        refused = cli("--decrypt", "message", "opened", "--suppress-metadata")
    finally:
        kms.enable_key(KeyId=key)
    assert refused.returncode != 0
    assert not files["opened"].exists() or text[:64] not in files["opened"].read_bytes()


def test_the_encryption_sdk_refuses_when_kms_does(kms, node, key):
    sdk = aws_encryption_sdk.EncryptionSDKClient()
    own = kms.create_key()["KeyMetadata"]["Arn"]
    message, _ = sdk.encrypt(source=b"text", keyring=keyring(own))
    kms.disable_key(KeyId=own)
    with pytest.raises(AWSEncryptionSDKClientError) as refused:
        sdk.decrypt(source=message, keyring=keyring(own))
    # What each keyring said stands in a list inside the SDK's own exception.
    assert f"{own} is disabled." in str(refused.value.args[0].list)
    with pytest.raises(Refused, match="DisabledException"):
        node("esdk-decrypt", own, stdin=message)
    kms.enable_key(KeyId=own)
    assert sdk.decrypt(source=message, keyring=keyring(own))[0] == b"text"


def test_credstash_keeps_secrets_under_our_key(kms, dynamodb, tmp_path):
    """A user of KMS that knows nothing of Enclos; the table is moto's, the key ours."""
    key = kms.create_key()["KeyMetadata"]["KeyId"]
    kms.create_alias(AliasName="alias/credstash", TargetKeyId=key)

    def credstash(*arguments):
        command = [sys.executable, SCRIPTS / "credstash.py", "--region", os.environ["AWS_REGION"], *arguments]
        # It writes a log into the current directory.
        return subprocess.run(command, capture_output=True, timeout=120, check=False, text=True, cwd=tmp_path)

    def said(*arguments):
        done = credstash(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    said("setup")
    said("put", "database", "hunter2", "app=web")
    said("put", "--autoversion", "database", "hunter3", "app=web")
    assert said("get", "database", "app=web") == "hunter3"
    assert said("get", "--version", "0" * 18 + "1", "database", "app=web") == "hunter2"
    stored = str(boto3.client("dynamodb").scan(TableName="credential-store")["Items"])
    assert "database" in stored and "hunter" not in stored
    wrong = credstash("get", "database", "app=other")
    assert wrong.returncode != 0 and "hunter" not in wrong.stdout
    kms.disable_key(KeyId=key)
    assert credstash("get", "database", "app=web").returncode != 0
