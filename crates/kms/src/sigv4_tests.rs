//! AWS's published test suite (`aws-signing-test-suite` of the aws-sigv4 crate, Apache-2.0), read as a server
//! reads it, and what must be refused.

use hyper::header::{HeaderName, HeaderValue};
use time::macros::datetime;

use super::*;

const SECRET: &[u8] = b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

fn secret(bytes: &[u8]) -> SecretKey {
    SecretKey::new(bytes.to_vec().into())
}

/// Name, signed request without its body, body.
const SUITE: &[(&str, &str, &str)] = &[
    (
        "get-vanilla",
        r##"GET / HTTP/1.1
Host:example.amazonaws.com
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"##,
        "",
    ),
    (
        "get-vanilla-query",
        r##"GET / HTTP/1.1
Host:example.amazonaws.com
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"##,
        "",
    ),
    (
        "get-vanilla-empty-query-key",
        r##"GET /?Param1=value1 HTTP/1.1
Host:example.amazonaws.com
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=a67d582fa61cc504c4bae71f336f98b97f1ea3c7a6bfe1b6e45aec72011b9aeb"##,
        "",
    ),
    (
        "get-vanilla-query-order-encoded",
        r##"GET /?Param-3=Value3&Param=Value2&%E1%88%B4=Value1 HTTP/1.1
Host:example.amazonaws.com
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=371d3713e185cc334048618a97f809c9ffe339c62934c032af5a0e595648fcac"##,
        "",
    ),
    (
        "get-vanilla-query-order-key-case",
        r##"GET /?Param2=value2&Param1=value1 HTTP/1.1
Host:example.amazonaws.com
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"##,
        "",
    ),
    (
        "get-vanilla-query-unreserved",
        r##"GET /?-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz=-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz HTTP/1.1
Host:example.amazonaws.com
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197"##,
        "",
    ),
    (
        "get-vanilla-utf8-query",
        r##"GET /?ሴ=bar HTTP/1.1
Host:example.amazonaws.com
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=2cdec8eed098649ff3a119c94853b13c643bcf08f8b0a1d91e12c9027818dd04"##,
        "",
    ),
    (
        "get-header-key-duplicate",
        r##"GET / HTTP/1.1
Host:example.amazonaws.com
My-Header1:value2
My-Header1:value2
My-Header1:value1
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;my-header1;x-amz-date, Signature=c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea"##,
        "",
    ),
    (
        "get-header-value-order",
        r##"GET / HTTP/1.1
Host:example.amazonaws.com
My-Header1:value4
My-Header1:value1
My-Header1:value3
My-Header1:value2
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;my-header1;x-amz-date, Signature=08c7e5a9acfcfeb3ab6b2185e75ce8b1deb5e634ec47601a50643f830c755c01"##,
        "",
    ),
    (
        "get-header-value-trim",
        r##"GET / HTTP/1.1
Host:example.amazonaws.com
My-Header1: value1
My-Header2: "a   b   c"
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;my-header1;my-header2;x-amz-date, Signature=acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736"##,
        "",
    ),
    (
        "get-unreserved",
        r##"GET /-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz HTTP/1.1
Host:example.amazonaws.com
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"##,
        "",
    ),
    (
        "get-utf8",
        r##"GET /ሴ HTTP/1.1
Host:example.amazonaws.com
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"##,
        "",
    ),
    (
        "post-header-key-sort",
        r##"POST / HTTP/1.1
Host:example.amazonaws.com
My-Header1:value1
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;my-header1;x-amz-date, Signature=c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c"##,
        "",
    ),
    (
        "post-header-value-case",
        r##"POST / HTTP/1.1
Host:example.amazonaws.com
My-Header1:VALUE1
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;my-header1;x-amz-date, Signature=cdbc9802e29d2942e5e10b5bccfdd67c5f22c7c4e8ae67b53629efa58b974b7d"##,
        "",
    ),
    (
        "post-vanilla",
        r##"POST / HTTP/1.1
Host:example.amazonaws.com
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"##,
        "",
    ),
    (
        "post-vanilla-query",
        r##"POST /?Param1=value1 HTTP/1.1
Host:example.amazonaws.com
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11"##,
        "",
    ),
    (
        "post-vanilla-empty-query-value",
        r##"POST /?Param1=value1 HTTP/1.1
Host:example.amazonaws.com
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=28038455d6de14eafc1f9222cf5aa6f1a96197d7deb8263271d420d138af7f11"##,
        "",
    ),
    (
        "post-x-www-form-urlencoded",
        r##"POST / HTTP/1.1
Content-Type:application/x-www-form-urlencoded
Host:example.amazonaws.com
Content-Length:13
X-Amz-Date:20150830T123600Z
x-amz-content-sha256:9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=content-length;content-type;host;x-amz-content-sha256;x-amz-date, Signature=d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b"##,
        "Param1=value1",
    ),
    (
        "post-x-www-form-urlencoded-parameters",
        r##"POST / HTTP/1.1
Content-Type:application/x-www-form-urlencoded; charset=utf-8
Host:example.amazonaws.com
Content-Length:13
X-Amz-Date:20150830T123600Z
x-amz-content-sha256:9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=content-length;content-type;host;x-amz-content-sha256;x-amz-date, Signature=328d1b9eaadca9f5818ef05e8392801e091653bafec24fcab71e7344e7f51422"##,
        "Param1=value1",
    ),
    (
        "get-vanilla-with-session-token",
        r##"GET / HTTP/1.1
Host:example.amazonaws.com
X-Amz-Security-Token:6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267
X-Amz-Date:20150830T123600Z
Authorization:AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date;x-amz-security-token, Signature=07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"##,
        "",
    ),
];

fn headers(lines: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.lines() {
        let (name, value) = line.split_once(':').unwrap();
        let name = HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
    }
    headers
}

fn parts(head: &str) -> (&str, &str, &str, HeaderMap) {
    let (line, lines) = head.split_once('\n').unwrap();
    let (method, target) = line
        .strip_suffix(" HTTP/1.1")
        .unwrap()
        .split_once(' ')
        .unwrap();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (method, path, query, headers(lines))
}

#[test]
fn awss_suite_verifies() {
    for (name, head, body) in SUITE {
        let (method, path, query, headers) = parts(head);
        let request = Request {
            method,
            path,
            query,
            headers: &headers,
            body: body.as_bytes(),
        };
        let authorization = Authorization::parse(&headers, query, "service", NOW).unwrap();
        assert_eq!(authorization.access_key_id(), "AKIDEXAMPLE", "{name}");
        let known = secret(SECRET);
        // Derived, then remembered.
        for _ in 0..2 {
            assert_eq!(authorization.verify(&known, &request), Ok(()), "{name}");
        }
        assert!(
            authorization
                .verify(&secret(b"another secret"), &request)
                .is_err(),
            "{name}"
        );
        let changed = Request {
            body: b"another body",
            ..request
        };
        assert!(authorization.verify(&known, &changed).is_err(), "{name}");
        let changed = Request {
            query: "another=query",
            ..request
        };
        assert!(authorization.verify(&known, &changed).is_err(), "{name}");
        let changed = Request {
            method: "PUT",
            ..request
        };
        assert!(authorization.verify(&known, &changed).is_err(), "{name}");
    }
}

const NOW: OffsetDateTime = datetime!(2015-08-30 12:36:00 UTC);
const HOST: &str = "host:kms.us-east-1.amazonaws.com\n";
const DATE: &str = "x-amz-date:20150830T123600Z\n";

fn authorization(credential: &str, signed: &str) -> String {
    let signature = "0".repeat(64);
    format!(
        "authorization:AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={signed}, Signature={signature}\n"
    )
}

const SCOPE: &str = "AKID/20150830/us-east-1/kms/aws4_request";

fn refusal(lines: &str) -> (ErrorKind, String) {
    let error = Authorization::parse(&headers(lines), "", "kms", NOW).unwrap_err();
    (error.kind(), error.message().unwrap_or_default().to_owned())
}

#[test]
fn a_well_formed_header_is_accepted_up_to_its_signature() {
    let lines = format!("{HOST}{DATE}{}", authorization(SCOPE, "host;x-amz-date"));
    let headers = headers(&lines);
    let authorization = Authorization::parse(&headers, "", "kms", NOW).unwrap();
    assert_eq!(
        (authorization.access_key_id(), authorization.region()),
        ("AKID", "us-east-1")
    );
    let request = Request {
        method: "POST",
        path: "/",
        query: "",
        headers: &headers,
        body: b"",
    };
    let error = authorization.verify(&secret(SECRET), &request).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSignature);
}

#[test]
fn missing_and_incomplete_headers() {
    let (kind, message) = refusal(HOST);
    assert_eq!(
        (kind, message.as_str()),
        (
            ErrorKind::MissingAuthenticationToken,
            "Missing Authentication Token"
        )
    );
    let (kind, message) = refusal(&format!(
        "{HOST}authorization:AWS4-HMAC-SHA256 Credential={SCOPE}\n"
    ));
    assert_eq!(kind, ErrorKind::IncompleteSignature);
    for part in [
        "Authorization header requires 'Signature' parameter. ",
        "Authorization header requires 'SignedHeaders' parameter. ",
        "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. ",
        "(Hashed with SHA-256 and encoded with Base64) Authorization=",
    ] {
        assert!(message.contains(part), "{message}");
    }
    for header in [
        "Basic dGVzdDp0ZXN0",
        "AWS4-ECDSA-P256-SHA256 Credential=x",
        "x",
    ] {
        let (kind, message) = refusal(&format!("{HOST}{DATE}authorization:{header}\n"));
        assert_eq!(kind, ErrorKind::IncompleteSignature);
        assert!(
            message.starts_with("Unsupported AWS 'algorithm'"),
            "{message}"
        );
    }
}

#[test]
fn wrong_scopes() {
    let cases = [
        (
            "AKID/20150830/us-east-1/kms",
            ErrorKind::IncompleteSignature,
            "exactly 5 slash-delimited elements",
        ),
        (
            "AKID/x/20150830/us-east-1/kms/aws4_request",
            ErrorKind::IncompleteSignature,
            "exactly 5",
        ),
        (
            "AKID/20150830/us-east-1/s3/aws4_request",
            ErrorKind::InvalidSignature,
            "correct service: 'kms'",
        ),
        (
            "AKID/20150830/us-east-1/kms/aws5",
            ErrorKind::InvalidSignature,
            "correct termination: 'aws4_request', got 'aws5'",
        ),
        (
            "AKID/20150830/US_EAST/kms/aws4_request",
            ErrorKind::InvalidSignature,
            "valid region",
        ),
        (
            "AKID/20150830//kms/aws4_request",
            ErrorKind::InvalidSignature,
            "valid region",
        ),
        (
            "AKID/20150831/us-east-1/kms/aws4_request",
            ErrorKind::InvalidSignature,
            "'20150831' != '20150830', from '20150830T123600Z'.",
        ),
    ];
    for (credential, expected, part) in cases {
        let lines = format!(
            "{HOST}{DATE}{}",
            authorization(credential, "host;x-amz-date")
        );
        let (kind, message) = refusal(&lines);
        assert_eq!(kind, expected, "{credential}");
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn headers_that_decide_must_be_signed() {
    let lines = format!("{HOST}{DATE}{}", authorization(SCOPE, "x-amz-date"));
    assert_eq!(
        refusal(&lines),
        (
            ErrorKind::InvalidSignature,
            "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.".to_owned()
        )
    );
    for name in ["x-amz-target", "x-amz-security-token"] {
        let lines = format!(
            "{HOST}{DATE}{name}:x\n{}",
            authorization(SCOPE, "host;x-amz-date")
        );
        let (kind, message) = refusal(&lines);
        assert_eq!(kind, ErrorKind::InvalidSignature);
        assert!(message.contains(name), "{message}");
    }
    let lines = format!("{HOST}{DATE}{}", authorization(SCOPE, "host"));
    assert!(refusal(&lines).1.contains("x-amz-date"));
}

/// A long header that is named thousands of times would be copied as often, before the signature is known to be wrong: 64 KiB of a
/// request became half a gigabyte.
#[test]
fn a_header_is_signed_once() {
    let long = format!("x-long:{}\n", "y".repeat(30_000));
    let many = format!("host;x-amz-date{}", ";x-long".repeat(4_000));
    for signed in ["host;x-amz-date;host", "host;host;x-amz-date", &many] {
        let lines = format!("{HOST}{DATE}{long}{}", authorization(SCOPE, signed));
        let (kind, message) = refusal(&lines);
        assert_eq!(kind, ErrorKind::InvalidSignature, "{message}");
    }
    let query = format!(
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={SCOPE}&X-Amz-Date=20150830T123600Z\
         &X-Amz-Expires=60&X-Amz-SignedHeaders=host;host&X-Amz-Signature=00"
    );
    let error = Authorization::parse(&headers(HOST), &query, "kms", NOW).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSignature);
}

#[test]
fn time_has_five_minutes_both_ways() {
    let lines = format!("{HOST}{DATE}{}", authorization(SCOPE, "host;x-amz-date"));
    let headers = headers(&lines);
    let at = |offset: Duration| Authorization::parse(&headers, "", "kms", NOW + offset);
    assert!(at(Duration::minutes(5)).is_ok());
    assert!(at(Duration::minutes(-5)).is_ok());
    let late = at(Duration::seconds(301)).unwrap_err();
    assert_eq!(
        late.message(),
        Some(
            "Signature expired: 20150830T123600Z is now earlier than 20150830T123601Z (20150830T124101Z - 5 min.)"
        )
    );
    let early = at(Duration::seconds(-301)).unwrap_err();
    assert_eq!(
        early.message(),
        Some(
            "Signature not yet current: 20150830T123600Z is still later than 20150830T123559Z (20150830T123059Z + 5 min.)"
        )
    );
    assert_eq!(
        (late.kind(), early.kind()),
        (ErrorKind::InvalidSignature, ErrorKind::InvalidSignature)
    );
}

#[test]
fn dates_that_are_none() {
    for date in ["20150830T1236Z", "20150830", "20151330T123600Z"] {
        let credential = format!("AKID/{}/us-east-1/kms/aws4_request", &date[..8]);
        let lines = format!(
            "{HOST}x-amz-date:{date}\n{}",
            authorization(&credential, "host;x-amz-date")
        );
        let (kind, message) = refusal(&lines);
        assert_eq!(kind, ErrorKind::IncompleteSignature, "{message}");
        assert!(
            message.starts_with("Date must be in ISO-8601 'basic format'"),
            "{message}"
        );
    }
}

#[test]
fn a_claimed_body_hash_must_be_the_bodys() {
    let lines = format!(
        "{HOST}{DATE}x-amz-content-sha256:UNSIGNED-PAYLOAD\n{}",
        authorization(SCOPE, "host;x-amz-content-sha256;x-amz-date")
    );
    let headers = headers(&lines);
    let authorization = Authorization::parse(&headers, "", "kms", NOW).unwrap();
    let request = Request {
        method: "POST",
        path: "/",
        query: "",
        headers: &headers,
        body: b"",
    };
    assert!(authorization.verify(&secret(SECRET), &request).is_err());
}

/// A presigned request as AWS's own signer makes it.
fn presigned(seconds: u64) -> (HeaderMap, String) {
    use aws_sigv4::http_request::{
        SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
    };
    let identity = aws_credential_types::Credentials::new(
        "AKID",
        std::str::from_utf8(SECRET).unwrap(),
        Some("to/ken+".to_owned()),
        None,
        "test",
    )
    .into();
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(std::time::Duration::from_secs(seconds));
    let parameters = aws_sigv4::sign::v4::SigningParams::builder()
        .identity(&identity)
        .region("us-east-1")
        .name("sts")
        .time(NOW.into())
        .settings(settings)
        .build()
        .unwrap()
        .into();
    let query = "Action=GetCallerIdentity&Version=2011-06-15";
    let uri = format!("https://sts.amazonaws.com/?{query}");
    let headers = [("host", "sts.amazonaws.com")];
    let request =
        SignableRequest::new("GET", &uri, headers.into_iter(), SignableBody::Bytes(b"")).unwrap();
    let (instructions, _) = sign(request, &parameters).unwrap().into_parts();
    let mut query = query.to_owned();
    for (name, value) in instructions.params() {
        query.push_str(&format!("&{name}={}", encode(value.as_bytes(), b"")));
    }
    (self::headers("host:sts.amazonaws.com\n"), query)
}

fn verify(headers: &HeaderMap, query: &str, now: OffsetDateTime) -> Result<(), ApiError> {
    let request = Request {
        method: "GET",
        path: "/",
        query,
        headers,
        body: b"",
    };
    Authorization::parse(headers, query, "sts", now)?.verify(&secret(SECRET), &request)
}

#[test]
fn presigned_requests_verify_while_their_time_lasts() {
    let (headers, query) = presigned(60);
    assert_eq!(verify(&headers, &query, NOW), Ok(()));
    let authorization = Authorization::parse(&headers, &query, "sts", NOW).unwrap();
    assert_eq!(authorization.security_token(), Some("to/ken+"));
    assert_eq!(
        verify(&headers, &query, NOW + Duration::seconds(60)),
        Ok(())
    );
    let late = verify(&headers, &query, NOW + Duration::seconds(61)).unwrap_err();
    assert!(
        late.message().unwrap().starts_with("Signature expired"),
        "{late}"
    );
    let early = verify(&headers, &query, NOW - Duration::seconds(301)).unwrap_err();
    assert!(
        early
            .message()
            .unwrap()
            .starts_with("Signature not yet current"),
        "{early}"
    );
    let other = query.replace("GetCallerIdentity", "GetSessionToken");
    assert_eq!(verify(&headers, &other, NOW).unwrap_err(), mismatch());
    let longer = query.replace("X-Amz-Expires=60", "X-Amz-Expires=61");
    assert_eq!(verify(&headers, &longer, NOW).unwrap_err(), mismatch());
}

#[test]
fn presigned_requests_are_checked_for_form() {
    let (headers, query) = presigned(60);
    for expires in ["0", "604801", "-1", "x", ""] {
        let query = query.replace("X-Amz-Expires=60", &format!("X-Amz-Expires={expires}"));
        let error = verify(&headers, &query, NOW).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IncompleteSignature, "{expires}");
    }
    for name in ["Credential", "Date", "SignedHeaders", "Signature"] {
        let query = query.replace(&format!("X-Amz-{name}="), "Other=");
        let error = verify(&headers, &query, NOW).unwrap_err();
        assert!(error.message().unwrap().contains(name), "{error}");
    }
    let nothing = verify(&headers, "Action=GetCallerIdentity", NOW).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::MissingAuthenticationToken);
}

#[test]
fn an_escape_is_two_hexadecimal_digits() {
    for (text, expected) in [
        ("%41", &b"A"[..]),
        ("%4", b"%4"),
        ("%+1", b"%+1"),
        ("%-1", b"%-1"),
        ("% 1", b"% 1"),
        ("%\u{e9}", "%\u{e9}".as_bytes()),
        ("%%41", b"%A"),
    ] {
        assert_eq!(decode(text), expected, "{text}");
    }
    assert_eq!(canonical_query("a=%+1"), "a=%25%2B1");
}
