//! OCI's `User`: from a name or number to uid, gid, supplementary groups and home, with the image's own
//! `/etc/passwd` and `/etc/group`.

/// Who the application runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Why a `User` cannot be resolved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserError {
    /// A name that the image does not know.
    #[error("the image's /etc/passwd has no user {name}; name one that it has, or a number")]
    NoUser {
        /// What was asked for.
        name: String,
    },
    /// A group name that the image does not know.
    #[error("the image's /etc/group has no group {name}; name one that it has, or a number")]
    NoGroup {
        /// What was asked for.
        name: String,
    },
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Lines that are not of the format are skipped, as the C library does.
fn passwd_lines(text: &str) -> impl Iterator<Item = Passwd<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else {
            return None;
        };
        Some(Passwd {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home,
        })
    })
}

fn group_lines(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, gid, members] = fields[..] else {
            return None;
        };
        Some(Group {
            name,
            gid: gid.parse().ok()?,
            members,
        })
    })
}

/// Resolves `user` against the texts of the image's two files.
///
/// As with other OCI runtimes a number need not be in the files, and supplementary groups are taken only when
/// no group was named.
///
/// # Errors
/// See [`UserError`].
pub fn resolve(user: &str, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let (user, named_group) = user
        .split_once(':')
        .map_or((user, ""), |(user, group)| (user, group));
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let entry = passwd_lines(passwd).find(|e| e.name == user || Some(e.uid) == number);
    let uid = entry.as_ref().map(|entry| entry.uid).or(number);
    let uid = uid.ok_or_else(|| UserError::NoUser {
        name: user.to_owned(),
    })?;
    let (gid, groups) = if named_group.is_empty() {
        let gid = entry.as_ref().map_or(0, |entry| entry.gid);
        (
            gid,
            supplementary(entry.as_ref().map_or("", |entry| entry.name), gid, group),
        )
    } else {
        (group_id(named_group, group)?, Vec::new())
    };
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| !home.is_empty())
        .unwrap_or("/");
    Ok(Identity {
        uid,
        gid,
        groups,
        home: home.to_owned(),
    })
}

fn group_id(name: &str, text: &str) -> Result<u32, UserError> {
    let number: Option<u32> = name.parse().ok();
    let entry = group_lines(text).find(|e| e.name == name || Some(e.gid) == number);
    let gid = entry.map(|entry| entry.gid).or(number);
    gid.ok_or_else(|| UserError::NoGroup {
        name: name.to_owned(),
    })
}

fn supplementary(name: &str, gid: u32, text: &str) -> Vec<u32> {
    let member =
        |group: &Group<'_>| !name.is_empty() && group.members.split(',').any(|m| m == name);
    let mut groups: Vec<u32> = group_lines(text)
        .filter(member)
        .map(|group| group.gid)
        .filter(|id| *id != gid)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\n\
                          app:x:1000:1001:App:/home/app:/bin/sh\nnohome:x:7:7:::\n";
    const GROUP: &str =
        "root:x:0:\napp:x:1001:\naudio:x:29:app,other\nweb:x:33:other,app\nbad:x:y:\n";

    fn id(user: &str) -> (u32, u32, Vec<u32>, String) {
        let identity = resolve(user, PASSWD, GROUP).unwrap();
        (identity.uid, identity.gid, identity.groups, identity.home)
    }

    #[test]
    fn every_form_resolves() {
        assert_eq!(id(""), (0, 0, vec![], "/root".into()));
        assert_eq!(id("app"), (1000, 1001, vec![29, 33], "/home/app".into()));
        assert_eq!(id("1000"), (1000, 1001, vec![29, 33], "/home/app".into()));
        assert_eq!(id("app:web"), (1000, 33, vec![], "/home/app".into()));
        assert_eq!(id("app:55"), (1000, 55, vec![], "/home/app".into()));
        assert_eq!(id("4242"), (4242, 0, vec![], "/".into()));
        assert_eq!(id("4242:4343"), (4242, 4343, vec![], "/".into()));
        assert_eq!(id(":33"), (0, 33, vec![], "/root".into()));
        assert_eq!(id("nohome").3, "/");
    }

    #[test]
    fn an_image_without_the_files_knows_root_and_numbers() {
        assert_eq!(resolve("", "", "").unwrap().uid, 0);
        assert_eq!(resolve("65532", "", "").unwrap().uid, 65532);
    }

    #[test]
    fn unknown_names_are_named() {
        let user = resolve("nobody", PASSWD, GROUP);
        assert_eq!(
            user,
            Err(UserError::NoUser {
                name: "nobody".into()
            })
        );
        let group = resolve("app:none", PASSWD, GROUP);
        assert_eq!(
            group,
            Err(UserError::NoGroup {
                name: "none".into()
            })
        );
        assert!(resolve("4294967296", PASSWD, GROUP).is_err());
        assert!(resolve("-1", PASSWD, GROUP).is_err());
    }
}
