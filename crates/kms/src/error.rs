//! What a caller is told when something fails: AWS's error type, AWS's text, AWS's status.
//!
//! One table, [`ErrorKind`], maps every failure to the name that SDKs switch on and to its HTTP status.
//! Internal causes never travel in the text: they are logged under the request id that the caller sees.

use std::fmt;

/// AWS's name of an error and its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The policy does not allow it.
    AccessDenied,
    /// The alias exists.
    AlreadyExists,
    /// The database cannot be reached; the caller may try again.
    DependencyTimeout,
    /// The key is disabled.
    Disabled,
    /// `DryRun` was asked for and the call would have succeeded.
    DryRunOperation,
    /// The import token is older than a day.
    ExpiredImportToken,
    /// The session is over.
    ExpiredToken,
    /// The authorization header lacks something.
    IncompleteSignature,
    /// The ciphertext belongs to another key than the one that was named.
    IncorrectKey,
    /// The key material is not what this key can take.
    IncorrectKeyMaterial,
    /// The alias name is malformed.
    InvalidAliasName,
    /// The ARN is malformed.
    InvalidArn,
    /// The ciphertext, or its encryption context, is not what was encrypted.
    InvalidCiphertext,
    /// The grant id is none.
    InvalidGrantId,
    /// The grant token is not ours.
    InvalidGrantToken,
    /// The import token is not one for this key.
    InvalidImportToken,
    /// The key cannot be used in this way.
    InvalidKeyUsage,
    /// The pagination marker is not ours.
    InvalidMarker,
    /// The signature does not match, or its time or scope is wrong.
    InvalidSignature,
    /// Our fault or our machine's.
    KmsInternal,
    /// The MAC is not one of this key over the message.
    KmsInvalidMac,
    /// The signature is not one of this key over the message.
    KmsInvalidSignature,
    /// The key's state forbids it.
    KmsInvalidState,
    /// A quota.
    LimitExceeded,
    /// The key policy is malformed or would lock its author out.
    MalformedPolicyDocument,
    /// The request carries no signature.
    MissingAuthenticationToken,
    /// A reserved alias.
    NotAuthorized,
    /// No such key, alias or policy.
    NotFound,
    /// A session policy is too long.
    PackedPolicyTooLarge,
    /// The body is larger than any valid request.
    RequestEntityTooLarge,
    /// The body is not the JSON that was expected.
    Serialization,
    /// A malformed tag.
    Tag,
    /// The client calls too often.
    Throttling,
    /// AWS KMS has no such operation.
    UnknownOperation,
    /// The access key is unknown.
    UnrecognizedClient,
    /// AWS KMS could, this server cannot.
    UnsupportedOperation,
    /// A parameter is out of its range.
    Validation,
}

impl ErrorKind {
    /// The value of `__type`.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::AccessDenied => "AccessDeniedException",
            Self::AlreadyExists => "AlreadyExistsException",
            Self::DependencyTimeout => "DependencyTimeoutException",
            Self::Disabled => "DisabledException",
            Self::DryRunOperation => "DryRunOperationException",
            Self::ExpiredImportToken => "ExpiredImportTokenException",
            Self::ExpiredToken => "ExpiredTokenException",
            Self::IncompleteSignature => "IncompleteSignatureException",
            Self::IncorrectKey => "IncorrectKeyException",
            Self::IncorrectKeyMaterial => "IncorrectKeyMaterialException",
            Self::InvalidAliasName => "InvalidAliasNameException",
            Self::InvalidArn => "InvalidArnException",
            Self::InvalidCiphertext => "InvalidCiphertextException",
            Self::InvalidGrantId => "InvalidGrantIdException",
            Self::InvalidGrantToken => "InvalidGrantTokenException",
            Self::InvalidImportToken => "InvalidImportTokenException",
            Self::InvalidKeyUsage => "InvalidKeyUsageException",
            Self::InvalidMarker => "InvalidMarkerException",
            Self::InvalidSignature => "InvalidSignatureException",
            Self::KmsInternal => "KMSInternalException",
            Self::KmsInvalidMac => "KMSInvalidMacException",
            Self::KmsInvalidSignature => "KMSInvalidSignatureException",
            Self::KmsInvalidState => "KMSInvalidStateException",
            Self::LimitExceeded => "LimitExceededException",
            Self::MalformedPolicyDocument => "MalformedPolicyDocumentException",
            Self::MissingAuthenticationToken => "MissingAuthenticationTokenException",
            Self::NotAuthorized => "NotAuthorizedException",
            Self::NotFound => "NotFoundException",
            Self::PackedPolicyTooLarge => "PackedPolicyTooLargeException",
            Self::RequestEntityTooLarge => "RequestEntityTooLargeException",
            Self::Serialization => "SerializationException",
            Self::Tag => "TagException",
            Self::Throttling => "ThrottlingException",
            Self::UnknownOperation => "UnknownOperationException",
            Self::UnrecognizedClient => "UnrecognizedClientException",
            Self::UnsupportedOperation => "UnsupportedOperationException",
            Self::Validation => "ValidationException",
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> u16 {
        match self {
            Self::DependencyTimeout | Self::KmsInternal => 500,
            Self::RequestEntityTooLarge => 413,
            _ => 400,
        }
    }
}

/// A failure as the caller sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    kind: ErrorKind,
    message: Option<String>,
}

impl ApiError {
    /// An error with a text.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: Some(message.into()),
        }
    }

    /// An error that AWS sends without a text.
    #[must_use]
    pub fn bare(kind: ErrorKind) -> Self {
        Self {
            kind,
            message: None,
        }
    }

    /// Our own failure; `cause` goes to the log only.
    pub(crate) fn internal(cause: &dyn std::error::Error) -> Self {
        tracing::error!(error = %Chain(cause), "request failed inside the KMS");
        Self::bare(ErrorKind::KmsInternal)
    }

    /// A [`ErrorKind::Validation`] error.
    pub fn validation(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Validation, message)
    }

    /// A [`ErrorKind::NotFound`] error.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// AWS's name and status of this error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The text, if AWS sends one.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    /// The response body.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match &self.message {
            Some(message) => serde_json::json!({ "__type": self.kind.code(), "message": message }),
            None => serde_json::json!({ "__type": self.kind.code() }),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Some(message) => write!(f, "{}: {message}", self.kind.code()),
            None => f.write_str(self.kind.code()),
        }
    }
}

impl std::error::Error for ApiError {}

/// Prints an error and all its sources on one line.
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}
