//! Tags as callers see them, and the conditions that look at them.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod common;

use common::{Client, Server};
use serde_json::{Value, json};

const ROLE: &str = "arn:aws:iam::000000000000:role/app";

fn tag(client: &Client, key: &str, tags: &[(&str, &str)]) -> common::Reply {
    let tags: Vec<Value> = tags
        .iter()
        .map(|(key, value)| json!({ "TagKey": key, "TagValue": value }))
        .collect();
    client.call("TagResource", json!({ "KeyId": key, "Tags": tags }))
}

fn tags(client: &Client, key: &str) -> Value {
    client
        .call("ListResourceTags", json!({ "KeyId": key }))
        .ok()["Tags"]
        .clone()
}

#[test]
fn tags_come_change_and_go() {
    let server = Server::dev();
    let client = server.client();
    let input = json!({ "Tags": [{ "TagKey": "a", "TagValue": "1" }] });
    let key = client.call("CreateKey", input).ok()["KeyMetadata"]["KeyId"].clone();
    let key = key.as_str().unwrap();
    assert_eq!(
        tags(&client, key),
        json!([{ "TagKey": "a", "TagValue": "1" }])
    );
    tag(&client, key, &[("a", "2"), ("b", "")]).ok();
    let both = json!([{ "TagKey": "a", "TagValue": "2" }, { "TagKey": "b", "TagValue": "" }]);
    assert_eq!(tags(&client, key), both);
    let page = client
        .call("ListResourceTags", json!({ "KeyId": key, "Limit": 1 }))
        .ok();
    assert_eq!(page["Truncated"], true);
    let input = json!({ "KeyId": key, "Marker": page["NextMarker"] });
    assert_eq!(
        client.call("ListResourceTags", input).ok()["Tags"][0]["TagKey"],
        "b"
    );
    let input = json!({ "KeyId": key, "TagKeys": ["a", "absent"] });
    assert_eq!(client.call("UntagResource", input).ok(), Value::Null);
    assert_eq!(
        tags(&client, key),
        json!([{ "TagKey": "b", "TagValue": "" }])
    );
}

#[test]
fn tags_outlive_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--listen", "127.0.0.1:0", "--dev"];
    let server = Server::start(directory.path(), &arguments);
    let key = server.client().create_key();
    tag(&server.client(), &key, &[("a", "1")]).ok();
    server.kill();
    let server = Server::start(directory.path(), &arguments);
    assert_eq!(tags(&server.client(), &key)[0]["TagValue"], "1");
}

#[test]
fn tags_are_checked() {
    let server = Server::dev();
    let client = server.client();
    let key = client.create_key();
    let long = "x".repeat(129);
    let rows: &[(&[(&str, &str)], &str)] = &[
        (&[("a", "1"), ("a", "2")], "TagException"),
        (&[("aws:a", "1")], "TagException"),
        (&[("", "1")], "ValidationException"),
        (&[(&long, "1")], "ValidationException"),
    ];
    for (tags, expected) in rows {
        assert_eq!(tag(&client, &key, tags).error_type(), *expected, "{tags:?}");
    }
    let reply = tag(&client, &key, &[("ok", "1"), (&long, "1")]);
    assert!(
        reply.error().1.contains("at 'tags.2.member.tagKey' failed"),
        "{reply:?}"
    );
    client
        .call("ScheduleKeyDeletion", json!({ "KeyId": key }))
        .ok();
    assert_eq!(
        tag(&client, &key, &[("a", "1")]).error_type(),
        "KMSInvalidStateException"
    );
}

#[test]
fn conditions_look_at_tags() {
    let server = Server::tls();
    let (root, role) = (server.client(), server.principal(ROLE));
    let key = root.create_key();
    let admin = json!({ "Effect": "Allow", "Principal": { "AWS": "000000000000" }, "Action": "kms:*", "Resource": "*" });
    let tagged = json!({ "Effect": "Allow", "Principal": { "AWS": ROLE }, "Action": "kms:DescribeKey", "Resource": "*",
        "Condition": { "StringEquals": { "aws:ResourceTag/team": "red" } } });
    let may_tag = json!({ "Effect": "Allow", "Principal": { "AWS": ROLE }, "Action": "kms:TagResource", "Resource": "*",
        "Condition": { "StringEquals": { "aws:RequestTag/team": "red" }, "ForAllValues:StringEquals": { "aws:TagKeys": ["team"] } } });
    let may_untag = json!({ "Effect": "Allow", "Principal": { "AWS": ROLE }, "Action": "kms:UntagResource", "Resource": "*",
        "Condition": { "ForAllValues:StringEquals": { "aws:TagKeys": ["team"] } } });
    root.put_policy(&key, &json!([admin, tagged, may_tag, may_untag]))
        .ok();
    let describe = || role.call("DescribeKey", json!({ "KeyId": key })).status;
    assert_eq!(describe(), 400);
    assert_eq!(
        tag(&role, &key, &[("team", "blue")]).error_type(),
        "AccessDeniedException"
    );
    assert_eq!(
        tag(&role, &key, &[("team", "red"), ("x", "y")]).error_type(),
        "AccessDeniedException"
    );
    tag(&role, &key, &[("team", "red")]).ok();
    assert_eq!(describe(), 200);
    let untag = |name: &str| role.call("UntagResource", json!({ "KeyId": key, "TagKeys": [name] }));
    assert_eq!(untag("other").error_type(), "AccessDeniedException");
    untag("team").ok();
    assert_eq!(describe(), 400);
}
