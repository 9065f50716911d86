//! Users, roles and sessions: what their policies give, what limits them, when they end.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use std::time::{Duration, Instant};

use common::{Client, Server, element, until};
use serde_json::{Value, json};

const ACCOUNT: &str = "000000000000";
const USER: &str = "arn:aws:iam::000000000000:user/alice";
const ROLE: &str = "arn:aws:iam::000000000000:role/team/app";
const SESSION: &str = "arn:aws:sts::000000000000:assumed-role/app/one";

fn document(statements: &Value) -> String {
    json!({ "Version": "2012-10-17", "Statement": statements }).to_string()
}

fn allow(action: &str) -> Value {
    json!({ "Effect": "Allow", "Action": action, "Resource": "*" })
}

/// Runs `identity put`; each pair is an option and either its value or a policy document to put into a file.
fn put(server: &Server, arn: &str, options: &[(&str, Value)]) {
    let mut arguments = vec![
        "identity".to_owned(),
        "put".to_owned(),
        "--arn".to_owned(),
        arn.to_owned(),
    ];
    for (number, (option, value)) in options.iter().enumerate() {
        let (name, prefix) = option.split_once(' ').unwrap_or((option, ""));
        arguments.push(name.to_owned());
        match value {
            Value::String(text) => arguments.push(text.clone()),
            Value::Null => {}
            statements => {
                let path = server.data.join(format!("policy-{number}.json"));
                std::fs::write(&path, document(statements)).unwrap();
                arguments.push(format!("{prefix}{}", path.display()));
            }
        }
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = server.tool(&arguments);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn trusting(principal: &str) -> Value {
    json!([{ "Effect": "Allow", "Principal": { "AWS": principal }, "Action": "sts:AssumeRole" }])
}

fn assume(client: &Client, more: &str) -> (u16, String) {
    client.sts(&format!(
        "Action=AssumeRole&RoleArn={ROLE}&RoleSessionName=one{more}"
    ))
}

fn assumed(client: &Client, more: &str) -> Client {
    let (status, xml) = assume(client, more);
    assert_eq!(status, 200, "{xml}");
    client.with_session(&xml)
}

fn describe(client: &Client, key: &str) -> u16 {
    client.call("DescribeKey", json!({ "KeyId": key })).status
}

/// Waits until the server has looked again: what a tool wrote counts after two seconds at most.
fn eventually(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !what() {
        assert!(Instant::now() < deadline, "it never came true");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_identity_policy_counts_where_the_key_policy_delegates() {
    let server = Server::tls();
    let root = server.client();
    put(
        &server,
        USER,
        &[(
            "--policy kms=",
            json!([allow("kms:DescribeKey"), allow("kms:CreateKey")]),
        )],
    );
    let user = server.principal(USER);
    let key = root.create_key();
    assert_eq!(describe(&user, &key), 200);
    let reply = user.call("GetKeyPolicy", json!({ "KeyId": key }));
    assert!(
        reply
            .error()
            .1
            .ends_with("because no identity-based policy allows the kms:GetKeyPolicy action"),
        "{reply:?}"
    );
    user.create_key();
    assert_eq!(
        user.call("ListKeys", json!({})).error_type(),
        "AccessDeniedException"
    );
    // A key policy that does not name the account leaves nothing to identity policies.
    let only = json!({ "Effect": "Allow", "Principal": { "AWS": ROLE }, "Action": "kms:*", "Resource": "*" });
    let input = json!({ "KeyId": key, "PolicyName": "default", "Policy": document(&json!([only])), "BypassPolicyLockoutSafetyCheck": true });
    root.call("PutKeyPolicy", input).ok();
    let reply = user.call("DescribeKey", json!({ "KeyId": key }));
    assert!(
        reply
            .error()
            .1
            .ends_with("because no resource-based policy allows the kms:DescribeKey action"),
        "{reply:?}"
    );
}

#[test]
fn a_deny_anywhere_wins() {
    let server = Server::tls();
    let root = server.client();
    let deny = json!({ "Effect": "Deny", "Action": "kms:DescribeKey", "Resource": "*" });
    put(
        &server,
        USER,
        &[
            ("--policy a=", json!([allow("kms:*")])),
            ("--policy b=", json!([deny])),
        ],
    );
    let user = server.principal(USER);
    let key = root.create_key();
    let named = json!([
        { "Effect": "Allow", "Principal": { "AWS": ACCOUNT }, "Action": "kms:*", "Resource": "*" },
        { "Effect": "Allow", "Principal": { "AWS": USER }, "Action": "kms:*", "Resource": "*" }
    ]);
    root.put_policy(&key, &named).ok();
    let reply = user.call("DescribeKey", json!({ "KeyId": key }));
    assert!(
        reply
            .error()
            .1
            .ends_with("with an explicit deny in an identity-based policy"),
        "{reply:?}"
    );
    user.call("GetKeyPolicy", json!({ "KeyId": key })).ok();
    let events = server.audit(1);
    let denied = events
        .iter()
        .find(|event| event["errorCode"] == "AccessDenied")
        .unwrap();
    let policies = &denied["additionalEventData"]["denial"]["policies"];
    assert_eq!(policies[1]["policy"], "b");
    assert_eq!(policies[1]["statements"][0]["outcome"], "applied");
}

#[test]
fn a_boundary_limits_what_policies_give() {
    let server = Server::tls();
    let root = server.client();
    put(
        &server,
        USER,
        &[
            ("--policy a=", json!([allow("kms:*")])),
            ("--boundary", json!([allow("kms:DescribeKey")])),
        ],
    );
    let user = server.principal(USER);
    let key = root.create_key();
    assert_eq!(describe(&user, &key), 200);
    let reply = user.call("GetKeyPolicy", json!({ "KeyId": key }));
    assert!(
        reply
            .error()
            .1
            .ends_with("because no permissions boundary allows the kms:GetKeyPolicy action"),
        "{reply:?}"
    );
    put(&server, USER, &[("--no-boundary", Value::Null)]);
    eventually(|| user.call("GetKeyPolicy", json!({ "KeyId": key })).status == 200);
}

#[test]
fn a_role_is_assumed_and_its_session_ends() {
    let server = Server::tls();
    let root = server.client();
    put(
        &server,
        ROLE,
        &[
            ("--trust", trusting(USER)),
            ("--policy a=", json!([allow("kms:DescribeKey")])),
        ],
    );
    put(&server, USER, &[]);
    let user = server.principal(USER);
    let key = root.create_key();
    assert_eq!(describe(&user, &key), 400);
    let session = assumed(&user, "");
    assert_eq!(describe(&session, &key), 200);
    let (status, xml) = session.sts("Action=GetCallerIdentity");
    assert_eq!(
        (
            status,
            element(&xml, "Arn").as_str(),
            element(&xml, "Account").as_str()
        ),
        (200, SESSION, ACCOUNT)
    );
    assert!(
        element(&xml, "UserId").starts_with("AROA") && element(&xml, "UserId").ends_with(":one"),
        "{xml}"
    );
    // The token belongs to its key, and the key to its token.
    let without = Client {
        token: None,
        ..session.clone()
    };
    assert_eq!(
        without.call("ListKeys", json!({})).error_type(),
        "UnrecognizedClientException"
    );
    let other = Client {
        token: assumed(&user, "").token,
        ..session.clone()
    };
    assert_eq!(
        other.call("ListKeys", json!({})).error_type(),
        "UnrecognizedClientException"
    );
    // The audit trail knows both.
    let is_used = |event: &&Value| event["userIdentity"]["type"] == "AssumedRole";
    let events = until("both are in the trail", || {
        let events = server.audit(1);
        events.iter().any(|event| is_used(&event)).then_some(events)
    });
    let used = events.iter().find(is_used).unwrap();
    assert_eq!(used["userIdentity"]["arn"], SESSION);
    assert_eq!(
        used["userIdentity"]["sessionContext"]["sessionIssuer"]["arn"],
        ROLE
    );
    let made = events
        .iter()
        .find(|event| event["eventName"] == "AssumeRole")
        .unwrap();
    assert_eq!(made["eventSource"], "sts.amazonaws.com");
    assert_eq!(made["requestParameters"]["roleArn"], ROLE);
    assert_eq!(
        made["responseElements"]["credentials"].get("secretAccessKey"),
        None
    );
    assert!(!server.log().contains(&session.secret));
    // A role that is removed, even if one of its name is made again, ends its sessions.
    assert!(
        server
            .tool(&["identity", "remove", "--arn", ROLE])
            .status
            .success()
    );
    put(
        &server,
        ROLE,
        &[("--policy a=", json!([allow("kms:DescribeKey")]))],
    );
    eventually(|| session.call("DescribeKey", json!({ "KeyId": key })).status == 400);
    assert_eq!(
        session
            .call("DescribeKey", json!({ "KeyId": key }))
            .error_type(),
        "UnrecognizedClientException"
    );
}

#[test]
fn who_may_assume_a_role() {
    let server = Server::tls();
    let user = server.principal(USER);
    let denied = |client: &Client, more: &str| {
        let (status, xml) = assume(client, more);
        assert_eq!(
            (status, element(&xml, "Code").as_str()),
            (403, "AccessDenied"),
            "{xml}"
        );
        element(&xml, "Message")
    };
    let text =
        format!("User: {USER} is not authorized to perform: sts:AssumeRole on resource: {ROLE}");
    assert_eq!(denied(&user, ""), text);
    let trust = json!([{ "Effect": "Allow", "Principal": { "AWS": ACCOUNT }, "Action": "sts:AssumeRole",
        "Condition": { "StringEquals": { "sts:ExternalId": "right" } } }]);
    put(&server, ROLE, &[("--trust", trust)]);
    // The account is trusted, so a policy of the user must admit too.
    eventually(|| !server.log().is_empty());
    assert_eq!(denied(&user, "&ExternalId=right"), text);
    put(
        &server,
        USER,
        &[(
            "--policy a=",
            json!([{ "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": ROLE }]),
        )],
    );
    eventually(|| assume(&user, "&ExternalId=right").0 == 200);
    assert_eq!(denied(&user, "&ExternalId=wrong"), text);
    assert_eq!(denied(&user, ""), text);
    assert_eq!(
        denied(&server.client(), ""),
        "Roles may not be assumed by root accounts."
    );
}

#[test]
fn a_session_policy_limits_the_session() {
    let server = Server::tls();
    let root = server.client();
    put(
        &server,
        ROLE,
        &[
            ("--trust", trusting(USER)),
            ("--policy a=", json!([allow("kms:*")])),
        ],
    );
    let user = server.principal(USER);
    let key = root.create_key();
    let policy = document(&json!([allow("kms:DescribeKey")]));
    let encoded: String = policy.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let session = assumed(&user, &format!("&Policy={encoded}"));
    assert_eq!(describe(&session, &key), 200);
    let reply = session.call("GetKeyPolicy", json!({ "KeyId": key }));
    assert!(
        reply
            .error()
            .1
            .ends_with("because no session policy allows the kms:GetKeyPolicy action"),
        "{reply:?}"
    );
    // What names the role is limited too; what names the session is not.
    let statement = |principal: &str| {
        json!([
            { "Effect": "Allow", "Principal": { "AWS": ACCOUNT }, "Action": "kms:*", "Resource": "*" },
            { "Effect": "Allow", "Principal": { "AWS": principal }, "Action": "kms:GetKeyPolicy", "Resource": "*" }
        ])
    };
    root.put_policy(&key, &statement(ROLE)).ok();
    assert_eq!(
        session.call("GetKeyPolicy", json!({ "KeyId": key })).status,
        400
    );
    root.put_policy(&key, &statement(SESSION)).ok();
    session.call("GetKeyPolicy", json!({ "KeyId": key })).ok();
}

#[test]
fn session_tags_and_names_reach_conditions() {
    let server = Server::tls();
    let root = server.client();
    let trust = json!([{ "Effect": "Allow", "Principal": { "AWS": USER }, "Action": ["sts:AssumeRole", "sts:TagSession"] }]);
    let tagged = json!([{ "Effect": "Allow", "Action": "kms:DescribeKey", "Resource": "*",
        "Condition": { "StringEquals": { "aws:PrincipalTag/team": "${aws:ResourceTag/team}" } } }]);
    put(
        &server,
        ROLE,
        &[("--trust", trust), ("--policy a=", tagged)],
    );
    let user = server.principal(USER);
    let key = root.create_key();
    let tags = json!([{ "TagKey": "team", "TagValue": "red" }]);
    root.call("TagResource", json!({ "KeyId": key, "Tags": tags }))
        .ok();
    let with = |value: &str| {
        assumed(
            &user,
            &format!("&Tags.member.1.Key=team&Tags.member.1.Value={value}"),
        )
    };
    assert_eq!(describe(&with("red"), &key), 200);
    assert_eq!(describe(&with("blue"), &key), 400);
    assert_eq!(describe(&assumed(&user, ""), &key), 400);
}

const FIRST: &str = "arn:aws:iam::000000000000:role/first";
const SECOND: &str = "arn:aws:iam::000000000000:role/second";

/// A session of the role `first`, which may do everything, with one transitive tag and a source identity.
fn first_of_a_chain(server: &Server) -> Client {
    let trust = json!([{ "Effect": "Allow", "Principal": { "AWS": USER },
        "Action": ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"] }]);
    let options = [("--trust", trust), ("--policy a=", json!([allow("*")]))];
    put(server, FIRST, &options);
    let form = format!(
        "Action=AssumeRole&RoleArn={FIRST}&RoleSessionName=one&SourceIdentity=alice\
         &Tags.member.1.Key=Team&Tags.member.1.Value=blue&TransitiveTagKeys.member.1=team"
    );
    let user = server.principal(USER);
    let (status, xml) = user.sts(&form);
    assert_eq!(status, 200, "{xml}");
    user.with_session(&xml)
}

/// Lets the role `first` take some actions on the role `second`.
fn put_second(server: &Server, actions: &[&str]) {
    let trust = json!([{ "Effect": "Allow", "Principal": { "AWS": FIRST }, "Action": actions }]);
    let blue = json!([{ "Effect": "Allow", "Action": "kms:ListKeys", "Resource": "*",
        "Condition": { "StringEquals": { "aws:PrincipalTag/Team": "blue" } } }]);
    put(server, SECOND, &[("--trust", trust), ("--policy a=", blue)]);
}

fn assume_second(client: &Client, more: &str) -> (u16, String) {
    client.sts(&format!(
        "Action=AssumeRole&RoleArn={SECOND}&RoleSessionName=two{more}"
    ))
}

#[test]
fn a_transitive_tag_stays_whatever_case_it_is_asked_for_in() {
    let server = Server::tls();
    let first = first_of_a_chain(&server);
    let actions = ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"];
    put_second(&server, &actions);
    let (status, xml) = assume_second(&first, "");
    assert_eq!(status, 200, "{xml}");
    first.with_session(&xml).call("ListKeys", json!({})).ok();
    for name in ["Team", "team", "TEAM"] {
        let tag = format!("&Tags.member.1.Key={name}&Tags.member.1.Value=red");
        let (status, xml) = assume_second(&first, &tag);
        assert_eq!(
            (status, element(&xml, "Code").as_str()),
            (400, "InvalidParameterValue"),
            "{xml}"
        );
    }
    let twice = "&Tags.member.1.Key=unit&Tags.member.1.Value=a&Tags.member.2.Key=Unit&Tags.member.2.Value=b";
    assert!(element(&assume_second(&first, twice).1, "Message").starts_with("Duplicate tag keys"),);
    let star = "&Tags.member.1.Key=unit&Tags.member.1.Value=%2A";
    assert_eq!(
        element(&assume_second(&first, star).1, "Code"),
        "ValidationError"
    );
}

#[test]
fn what_is_wrong_with_tags_does_not_tell_which_roles_there_are() {
    let server = Server::tls();
    let first = first_of_a_chain(&server);
    put_second(&server, &["sts:SetSourceIdentity"]);
    let tag = "&Tags.member.1.Key=Team&Tags.member.1.Value=red";
    let nobody = format!("{SECOND}s");
    let of = |role: &str| {
        let form = format!("Action=AssumeRole&RoleArn={role}&RoleSessionName=two{tag}");
        let (status, xml) = first.sts(&form);
        (status, element(&xml, "Code"), element(&xml, "Message"))
    };
    assert_eq!(of(SECOND), of(&nobody));
    assert_eq!(of(SECOND).1, "InvalidParameterValue");
}

#[test]
fn whoever_names_an_mfa_device_gets_no_session_without_it() {
    let server = Server::tls();
    put(&server, ROLE, &[("--trust", trusting(USER))]);
    let user = server.principal(USER);
    let device = "arn:aws:iam::000000000000:mfa/alice";
    for form in [
        format!("Action=GetSessionToken&SerialNumber={device}&TokenCode=123456"),
        "Action=GetSessionToken&TokenCode=123456".to_owned(),
        format!("Action=AssumeRole&RoleArn={ROLE}&RoleSessionName=one&SerialNumber={device}"),
        format!("Action=AssumeRole&RoleArn={ROLE}&RoleSessionName=one&TokenCode=123456"),
        format!(
            "Action=AssumeRole&RoleArn={ROLE}&RoleSessionName=one&ProvidedContexts.member.1.ContextAssertion=x"
        ),
        format!(
            "Action=AssumeRole&RoleArn={ROLE}&RoleSessionName=one&PolicyArns.member.1.arn=arn:aws:iam::aws:policy/x"
        ),
    ] {
        let (status, xml) = user.sts(&form);
        assert_eq!(
            (status, element(&xml, "Code").as_str()),
            (400, "ValidationError"),
            "{form}: {xml}"
        );
    }
}

#[test]
fn a_users_session_token_makes_no_chain() {
    let server = Server::tls();
    let trust = ("--trust", trusting(USER));
    put(&server, ROLE, &[trust, ("--max-session", "7200".into())]);
    let user = server.principal(USER);
    let (status, xml) = user.sts("Action=GetSessionToken");
    assert_eq!(status, 200, "{xml}");
    let session = user.with_session(&xml);
    let (status, xml) = assume(&session, "&DurationSeconds=7200");
    assert_eq!(status, 200, "{xml}");
}

#[test]
fn listing_grants_to_retire_is_decided_by_the_principal_that_may_retire_them() {
    let server = Server::tls();
    let mut own = allow("kms:ListRetirableGrants");
    own["Resource"] = json!(USER);
    put(&server, USER, &[("--policy kms=", json!([own]))]);
    let user = server.principal(USER);
    let list = |principal: &str| {
        let input = json!({ "RetiringPrincipal": principal });
        user.call("ListRetirableGrants", input).status
    };
    assert_eq!((list(USER), list(ROLE)), (200, 400));
}

#[test]
fn a_key_is_described_by_the_alias_that_a_policy_asks_for() {
    let server = Server::tls();
    let root = server.client();
    let mut by_alias = allow("kms:DescribeKey");
    by_alias["Condition"] = json!({ "StringEquals": { "kms:RequestAlias": "alias/app" } });
    put(&server, USER, &[("--policy kms=", json!([by_alias]))]);
    let user = server.principal(USER);
    let key = root.create_key();
    let alias = json!({ "AliasName": "alias/app", "TargetKeyId": key });
    root.call("CreateAlias", alias).ok();
    assert_eq!(describe(&user, "alias/app"), 200);
    assert_eq!(describe(&user, &key), 400);
}

#[test]
fn a_chain_needs_the_permissions_for_what_it_hands_on() {
    let server = Server::tls();
    let first = first_of_a_chain(&server);
    for (actions, missing) in [
        (&["sts:AssumeRole"][..], Some("sts:TagSession")),
        (
            &["sts:AssumeRole", "sts:TagSession"][..],
            Some("sts:SetSourceIdentity"),
        ),
        (
            &["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"][..],
            None,
        ),
    ] {
        put_second(&server, actions);
        eventually(|| match (assume_second(&first, ""), missing) {
            ((status, _), None) => status == 200,
            ((status, xml), Some(action)) => {
                assert_ne!(status, 200, "{xml}");
                element(&xml, "Message").contains(action)
            }
        });
    }
}

#[test]
fn sts_answers_as_aws_does() {
    let server = Server::tls();
    put(&server, ROLE, &[("--trust", trusting(USER))]);
    let user = server.principal(USER);
    let root = server.client();
    let (status, xml) = root.sts("Action=GetCallerIdentity");
    assert_eq!(
        (status, element(&xml, "Arn")),
        (200, format!("arn:aws:iam::{ACCOUNT}:root"))
    );
    let rows = [
        (
            assume(&user, "&DurationSeconds=7200"),
            400,
            "ValidationError",
            "MaxSessionDuration",
        ),
        (
            assume(&user, "&DurationSeconds=1"),
            400,
            "ValidationError",
            "greater than or equal to 900",
        ),
        (
            user.sts("Action=AssumeRole"),
            400,
            "ValidationError",
            "3 validation errors",
        ),
        (
            user.sts(
                "Action=AssumeRole&RoleArn=arn:aws:iam::000000000000:user/x&RoleSessionName=ab",
            ),
            400,
            "ValidationError",
            "is invalid",
        ),
        (
            assume(&user, "&Policy=x"),
            400,
            "MalformedPolicyDocument",
            "JSON",
        ),
        (
            user.sts("Action=Nonsense"),
            400,
            "InvalidAction",
            "Could not find operation Nonsense for version 2011-06-15",
        ),
    ];
    for ((status, xml), expected, code, text) in rows {
        let shown = (status, element(&xml, "Code"));
        if code == "ValidationError" && text == "3 validation errors" {
            // Absent members are listed together.
            assert_eq!(shown, (expected, code.to_owned()), "{xml}");
            assert!(
                element(&xml, "Message").contains("validation errors detected"),
                "{xml}"
            );
            continue;
        }
        assert_eq!(shown, (expected, code.to_owned()), "{xml}");
        assert!(element(&xml, "Message").contains(text), "{xml}");
    }
    let wrong = Client {
        secret: "x".to_owned(),
        ..user.clone()
    };
    let (status, xml) = wrong.sts("Action=GetCallerIdentity");
    assert_eq!(
        (status, element(&xml, "Code").as_str()),
        (403, "SignatureDoesNotMatch")
    );
    let unknown = Client {
        id: "AKIAUNKNOWN".to_owned(),
        ..user.clone()
    };
    let (status, xml) = unknown.sts("Action=GetCallerIdentity");
    assert_eq!(
        (status, element(&xml, "Code").as_str()),
        (403, "InvalidClientTokenId")
    );
    // A user's own session has the user's permissions, and makes no further one.
    let (status, xml) = user.sts("Action=GetSessionToken");
    assert_eq!(status, 200, "{xml}");
    let session = user.with_session(&xml);
    let (_, xml) = session.sts("Action=GetCallerIdentity");
    assert_eq!(element(&xml, "Arn"), USER);
    let (status, xml) = session.sts("Action=GetSessionToken");
    assert_eq!(
        (status, element(&xml, "Code").as_str()),
        (403, "AccessDenied")
    );
}

/// The answer to credentials that are no longer any.
fn is_unknown(client: &Client) -> bool {
    let reply = client.call("ListKeys", json!({}));
    reply.status != 200 && reply.error_type() == "UnrecognizedClientException"
}

#[test]
fn a_users_session_ends_with_its_access_key_and_with_the_user() {
    let server = Server::tls();
    let all = json!([allow("kms:*")]);
    put(&server, USER, &[("--policy a=", all.clone())]);
    let (removed, kept) = (server.principal(USER), server.principal(USER));
    let root = server.principal(&format!("arn:aws:iam::{ACCOUNT}:root"));
    let session = |client: &Client| {
        let (status, xml) = client.sts("Action=GetSessionToken");
        assert_eq!(status, 200, "{xml}");
        client.with_session(&xml)
    };
    let [first, second, roots] = [&removed, &kept, &root].map(session);
    // No session begins another one, the root user's neither.
    let (status, xml) = roots.sts("Action=GetSessionToken");
    assert_eq!(
        (status, element(&xml, "Code").as_str()),
        (403, "AccessDenied")
    );
    for session in [&first, &second, &roots] {
        session.call("ListKeys", json!({})).ok();
    }
    for client in [&removed, &root] {
        let output = server.tool(&["principal", "remove", "--access-key-id", &client.id]);
        assert!(output.status.success());
    }
    eventually(|| is_unknown(&first) && is_unknown(&roots));
    second.call("ListKeys", json!({})).ok();
    assert!(
        server
            .tool(&["identity", "remove", "--arn", USER])
            .status
            .success()
    );
    put(&server, USER, &[("--policy a=", all)]);
    eventually(|| is_unknown(&second) && kept.call("ListKeys", json!({})).status == 200);
}

#[test]
fn one_client_cannot_take_it_all() {
    let server = Server::with(&["--rate-limit", "5"]);
    let client = server.client();
    let replies: Vec<_> = (0..40)
        .map(|_| client.call("ListKeys", json!({})))
        .collect();
    let (done, throttled): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 200);
    assert!(done.len() >= 5, "{}", done.len());
    let refused = throttled.first().expect("nothing was throttled");
    assert_eq!(
        refused.error(),
        (
            "ThrottlingException",
            "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls."
        )
    );
}

#[test]
fn a_name_is_had_by_one_role_alone() {
    let server = Server::tls();
    put(
        &server,
        ROLE,
        &[
            ("--trust", trusting(USER)),
            ("--policy a=", json!([allow("kms:ListKeys")])),
        ],
    );
    let user = server.principal(USER);
    let session = assumed(&user, "");
    session.call("ListKeys", json!({})).ok();
    let other = "arn:aws:iam::000000000000:role/sandbox/App";
    for arguments in [
        ["identity", "put", "--arn", other],
        ["principal", "add", "--arn", other],
        [
            "identity",
            "put",
            "--arn",
            "arn:aws:iam::000000000000:user/Alice",
        ],
    ] {
        let output = server.tool(&arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("have one name"), "{text}");
    }
    put(&server, "arn:aws:iam::000000000000:user/app", &[]);
    put(&server, ROLE, &[]);
    // What was written before names were looked at: neither of the two is believed.
    server.sql(&format!(
        "INSERT INTO identities (arn, unique_id, created_ms, profile) VALUES ('{other}', 'AROAOTHER', 0, '{{}}')"
    ));
    eventually(|| session.call("ListKeys", json!({})).status == 500);
    let removed = server.tool(&["identity", "remove", "--arn", other]);
    assert!(removed.status.success());
    eventually(|| session.call("ListKeys", json!({})).status == 200);
}

#[test]
fn tools_refuse_what_the_server_could_not_use() {
    let server = Server::dev();
    let bad = server.data.join("bad.json");
    std::fs::write(
        &bad,
        document(
            &json!([{ "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*" }]),
        ),
    )
    .unwrap();
    let path = bad.display().to_string();
    let policy = format!("a={path}");
    for arguments in [
        &["identity", "put", "--arn", USER, "--policy", &policy][..],
        &["identity", "put", "--arn", USER, "--trust", &path],
        &["identity", "put", "--arn", USER, "--remove-policy", "a"],
        &["identity", "show", "--arn", USER],
        &["identity", "remove", "--arn", USER],
    ] {
        let output = server.tool(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    }
    let root = format!("arn:aws:iam::{ACCOUNT}:root");
    assert_eq!(
        server
            .tool(&["identity", "show", "--arn", &root])
            .status
            .code(),
        Some(2)
    );
    put(
        &server,
        USER,
        &[
            ("--policy a=", json!([allow("kms:*")])),
            ("--tag", json!("team=red")),
        ],
    );
    let output = server.tool(&["identity", "list", "--json"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list[0]["Arn"], USER);
    assert_eq!(list[0]["Policies"]["a"]["Statement"][0]["Action"], "kms:*");
    assert_eq!(list[0]["Tags"], json!({ "team": "red" }));
    put(&server, USER, &[("--tag", json!("Team=blue"))]);
    let output = server.tool(&["identity", "show", "--arn", USER]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["Tags"], json!({ "Team": "blue" }));
    let table = String::from_utf8(server.tool(&["identity", "list"]).stdout).unwrap();
    assert!(
        table.starts_with("PRINCIPAL ") && table.contains("alice"),
        "{table}"
    );
}

#[test]
fn a_session_is_known_without_the_database() {
    let server = Server::tls();
    let policy = json!([allow("kms:ListKeys")]);
    put(
        &server,
        ROLE,
        &[("--trust", trusting(USER)), ("--policy kms=", policy)],
    );
    let session = assumed(&server.principal(USER), "");
    server.sql("ALTER TABLE principals RENAME TO away");
    let nobody = Client {
        id: "AKIAAAAAAAAAAAAAAAAA".to_owned(),
        token: None,
        ..session.clone()
    };
    let refused = nobody.call("ListKeys", json!({}));
    assert_eq!(refused.error_type(), "KMSInternalException");
    session.call("ListKeys", json!({})).ok();
}
