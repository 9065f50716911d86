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

/// Largest id, as runc has it: above it, and -1 among them, the kernel's calls mean something else.
const MAX_ID: u32 = i32::MAX as u32;

fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id <= MAX_ID)
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
            uid: id(uid)?,
            gid: id(gid)?,
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
            gid: id(gid)?,
            members,
        })
    })
}

/// Resolves `user` against the texts of the image's two files.
///
/// As with other OCI runtimes a number need not be in the files and is never a name, and supplementary groups are taken only
/// when no group was named.
///
/// # Errors
/// See [`UserError`].
pub fn resolve(user: &str, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let (user, named_group) = user
        .split_once(':')
        .map_or((user, ""), |(user, group)| (user, group));
    let user = if user.is_empty() { "0" } else { user };
    let number = id(user);
    let entry = passwd_lines(passwd).find(|e| match number {
        Some(number) => e.uid == number,
        None => e.name == user,
    });
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
    let named = || group_lines(text).find(|e| e.name == name);
    let gid = id(name).or_else(|| named().map(|entry| entry.gid));
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

    fn ids(user: &str) -> (u32, u32, Vec<u32>, String) {
        let identity = resolve(user, PASSWD, GROUP).unwrap();
        (identity.uid, identity.gid, identity.groups, identity.home)
    }

    #[test]
    fn every_form_resolves() {
        assert_eq!(ids(""), (0, 0, vec![], "/root".into()));
        assert_eq!(ids("app"), (1000, 1001, vec![29, 33], "/home/app".into()));
        assert_eq!(ids("1000"), (1000, 1001, vec![29, 33], "/home/app".into()));
        assert_eq!(ids("app:web"), (1000, 33, vec![], "/home/app".into()));
        assert_eq!(ids("app:55"), (1000, 55, vec![], "/home/app".into()));
        assert_eq!(ids("4242"), (4242, 0, vec![], "/".into()));
        assert_eq!(ids("4242:4343"), (4242, 4343, vec![], "/".into()));
        assert_eq!(ids(":33"), (0, 33, vec![], "/root".into()));
        assert_eq!(ids("nohome").3, "/");
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

    /// To `setresuid` that is -1, which changes nothing: the application would be root.
    #[test]
    fn ids_that_mean_something_else_to_the_kernel_are_none() {
        let passwd = "odd:x:4294967295:4294967295::/:\n";
        for user in ["4294967295", "2147483648", "odd", "0:4294967295"] {
            assert!(
                resolve(user, passwd, "odd:x:4294967295:\n").is_err(),
                "{user}"
            );
        }
        assert_eq!(resolve("2147483647", "", "").unwrap().uid, 2_147_483_647);
    }

    #[test]
    fn a_number_is_never_a_name() {
        let passwd = "33:x:0:0::/root:\nweb:x:33:34::/web:\n";
        let identity = resolve("33:5", passwd, "5:x:0:\n").unwrap();
        assert_eq!(
            (identity.uid, identity.gid, &*identity.home),
            (33, 5, "/web")
        );
    }
}
