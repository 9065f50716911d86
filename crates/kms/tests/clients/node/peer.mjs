// AWS's SDK and AWS's Encryption SDK for JavaScript, as the tests of clients use them.
//
//     node peer.mjs encrypt KEY [NAME=VALUE …]       < plaintext  > ciphertext
//     node peer.mjs decrypt [NAME=VALUE …]           < ciphertext > plaintext
//     node peer.mjs esdk-encrypt KEY [NAME=VALUE …]  < plaintext  > message
//     node peer.mjs esdk-decrypt KEY [NAME=VALUE …]  < message    > plaintext
//     node peer.mjs checks KEY
//     node peer.mjs ethereum KEY
//
// Endpoint, region and credentials come from the environment. A call that KMS refuses ends the program with status 7
// and the exception's name on standard error.
//
// Packages are installed apart from the checkout: ENCLOS_NODE_MODULES names the folder above node_modules.

import assert from "node:assert/strict";
import { createPublicKey, randomBytes, verify } from "node:crypto";
import { createRequire } from "node:module";
import { buffer } from "node:stream/consumers";

const require = createRequire(`${process.env.ENCLOS_NODE_MODULES}/`);
const kms = require("@aws-sdk/client-kms");
const esdk = require("@aws-crypto/client-node");

const REFUSED = 7;
const client = new kms.KMSClient({ maxAttempts: 1 });
const send = (command) => client.send(command);

const contextOf = (pairs) => Object.fromEntries(pairs.map((pair) => pair.split(/=(.*)/s, 2)));
const input = () => buffer(process.stdin);
const output = (bytes) => process.stdout.write(bytes);

function keyring(key) {
  // The keyring makes a client for the key's region; that client, too, reads the endpoint from the environment.
  return new esdk.KmsKeyringNode({ generatorKeyId: key });
}

const commitment = esdk.buildClient(esdk.CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT);

const commands = {
  async encrypt(KeyId, ...pairs) {
    const request = { KeyId, Plaintext: await input(), EncryptionContext: contextOf(pairs) };
    output((await send(new kms.EncryptCommand(request))).CiphertextBlob);
  },
  async decrypt(...pairs) {
    const request = { CiphertextBlob: await input(), EncryptionContext: contextOf(pairs) };
    output((await send(new kms.DecryptCommand(request))).Plaintext);
  },
  async "esdk-encrypt"(key, ...pairs) {
    const { result } = await commitment.encrypt(keyring(key), await input(), { encryptionContext: contextOf(pairs) });
    output(result);
  },
  async "esdk-decrypt"(key, ...pairs) {
    const { plaintext, messageHeader } = await commitment.decrypt(keyring(key), await input());
    for (const [name, value] of Object.entries(contextOf(pairs))) {
      assert.equal(messageHeader.encryptionContext[name], value);
    }
    output(plaintext);
  },
  async checks(KeyId) {
    await dataKeys(KeyId);
    await grants(KeyId);
    await signatures();
    await errors(KeyId);
  },
  // A signer of Ethereum's: from a signature its own library finds the key again.
  async ethereum(KeyId) {
    const { KmsSigner } = require("aws-kms-signer");
    const curve = require("secp256k1");
    const signer = new KmsSigner(KeyId);
    const { PublicKey } = await send(new kms.GetPublicKeyCommand({ KeyId }));
    for (let turn = 0; turn < 8; turn++) {
      const digest = randomBytes(32);
      const { r, s, v } = await signer.sign(digest);
      const found = curve.ecdsaRecover(Buffer.concat([r, s]), v - 27, digest, false);
      assert.deepEqual(Buffer.from(found), Buffer.from(PublicKey).subarray(-65));
    }
  },
};

async function dataKeys(KeyId) {
  const pair = await send(new kms.GenerateDataKeyPairCommand({ KeyId, KeyPairSpec: "ECC_NIST_P256" }));
  const opened = await send(new kms.DecryptCommand({ CiphertextBlob: pair.PrivateKeyCiphertextBlob }));
  assert.deepEqual(opened.Plaintext, pair.PrivateKeyPlaintext);
  const { Plaintext } = await send(new kms.GenerateRandomCommand({ NumberOfBytes: 24 }));
  assert.equal(Plaintext.length, 24);
}

async function grants(KeyId) {
  const grant = { KeyId, GranteePrincipal: "arn:aws:iam::000000000000:role/reader", Operations: ["Decrypt"] };
  const { GrantId } = await send(new kms.CreateGrantCommand(grant));
  const ids = [];
  for await (const page of kms.paginateListGrants({ client, pageSize: 1 }, { KeyId })) {
    ids.push(...page.Grants.map((listed) => listed.GrantId));
  }
  assert.deepEqual(ids, [GrantId]);
  await send(new kms.RevokeGrantCommand({ KeyId, GrantId }));
}

async function signatures() {
  const made = await send(new kms.CreateKeyCommand({ KeySpec: "ECC_NIST_P384", KeyUsage: "SIGN_VERIFY" }));
  assert.ok(made.KeyMetadata.CreationDate instanceof Date);
  const request = { KeyId: made.KeyMetadata.KeyId, Message: Buffer.from("message"), SigningAlgorithm: "ECDSA_SHA_384" };
  const { Signature } = await send(new kms.SignCommand(request));
  const { PublicKey } = await send(new kms.GetPublicKeyCommand({ KeyId: request.KeyId }));
  const key = createPublicKey({ key: Buffer.from(PublicKey), format: "der", type: "spki" });
  assert.ok(verify("sha384", request.Message, key, Signature));
  await assert.rejects(send(new kms.VerifyCommand({ ...request, Message: Buffer.from("another"), Signature })), (error) => {
    return error instanceof kms.KMSInvalidSignatureException;
  });
}

async function errors(KeyId) {
  const thrown = async (command, type) => {
    await assert.rejects(send(command), (error) => {
      assert.ok(error instanceof type, `expected ${type.name}, got ${error}`);
      assert.equal(error.$fault, "client");
      assert.match(error.$metadata.requestId, /^[0-9a-f-]{36}$/);
      return true;
    });
  };
  await thrown(new kms.DescribeKeyCommand({ KeyId: "alias/nowhere" }), kms.NotFoundException);
  await thrown(new kms.DecryptCommand({ CiphertextBlob: Buffer.from("noise") }), kms.InvalidCiphertextException);
  const policy = { KeyId, PolicyName: "default", Policy: "{}" };
  await thrown(new kms.PutKeyPolicyCommand(policy), kms.MalformedPolicyDocumentException);
  await thrown(new kms.TagResourceCommand({ KeyId, Tags: [{ TagKey: "aws:x", TagValue: "" }] }), kms.TagException);
}

const [name, ...rest] = process.argv.slice(2);
try {
  await commands[name](...rest);
} catch (error) {
  // The Encryption SDK keeps of what its keyrings said the text alone.
  const wrapped = /^\s*(\w+Exception):/m.exec(error.message)?.[1];
  const refusal = error instanceof kms.KMSServiceException ? error.name : wrapped;
  process.stderr.write(`${refusal ?? error.stack}\n`);
  process.exitCode = refusal ? REFUSED : 1;
}
