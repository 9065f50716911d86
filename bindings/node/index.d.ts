/** Verifies attestation documents of AWS Nitro Enclaves and of Enclos. */

/** The document is not accepted: what happened, then why. */
export class Refused extends Error {
  readonly reasons: string[]
}

/** A document whose signature, chain, freshness and content were checked. Only a `Verifier` makes one. */
export class VerifiedDocument {
  private constructor()
  readonly moduleId: string
  /** Milliseconds since 1970, UTC. */
  readonly timestamp: number
  /** Locked registers by number, 96 lower-case hexadecimal digits each. */
  readonly pcrs: Readonly<Record<string, string>>
  /** The key that the enclave bound to the document. */
  readonly publicKey: Buffer | null
  readonly userData: Buffer | null
  readonly nonce: Buffer | null
  /** Name of the trusted root that the chain begins with; `aws` is AWS's. */
  readonly root: string
  readonly isDebug: boolean
}

export interface VerifierOptions {
  /** Trusted roots by name, DER or PEM. */
  roots?: Record<string, Uint8Array>
  /** Trust AWS's root. */
  aws?: boolean
  /** Registers that must have these values, 96 hexadecimal digits each. */
  pcrs?: Record<string, string>
  /** A measurement policy, JSON. */
  policy?: string
  /** Oldest document accepted; 300 unless given. */
  maxAgeSeconds?: number
  /** Judge documents at their own time: for records. */
  archival?: boolean
  /** Accept debug enclaves, whose memory their host can read. */
  allowDebug?: boolean
}

/** Decides about documents, and remembers the chains that it has proven: keep one. */
export class Verifier {
  /** @throws TypeError when a value cannot be used, or no root is trusted. */
  constructor(options?: VerifierOptions)
  /**
   * `nonce` is what the document was asked for with; `now` is in milliseconds since 1970.
   * @throws Refused with every reason.
   */
  verify(document: Uint8Array, options?: { nonce?: Uint8Array; now?: number }): VerifiedDocument
}

/**
 * Warnings of the linter for a measurement policy.
 * @throws TypeError when it is none.
 */
export function lintPolicy(policy: string, options?: { now?: number }): string[]
