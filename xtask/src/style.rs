//! House rule on size: files up to 1,000 lines without their tests, functions up to 80.
//!
//! Clippy's `too_many_lines` (threshold in clippy.toml) would count the same way for functions, but belongs to a group
//! that is off; this check counts in source text, so it also sees what is compiled only elsewhere.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

const FILE_LINES: usize = 1_000;
const FUNCTION_LINES: usize = 80;

/// Folders with Rust source of this project.
const SOURCES: [&str; 7] = [
    "benches", "bindings", "crates", "e2e", "xtask", "examples", "fuzz",
];

/// Checks every Rust file outside `target` and `tests` folders.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let mut files = Vec::new();
    for folder in SOURCES.iter().map(|folder| workspace.path(folder)) {
        collect(&folder, &mut files)?;
    }
    let mut wrong = Vec::new();
    for file in &files {
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file
            .strip_prefix(&workspace.root)
            .unwrap_or(file)
            .display()
            .to_string();
        wrong.extend(
            findings(&text)
                .into_iter()
                .map(|finding| format!("{name}{finding}")),
        );
    }
    if !wrong.is_empty() {
        bail!("too long to be read; split:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            if !["target", "tests"].iter().any(|name| path.ends_with(name)) {
                collect(&path, files)?;
            }
        } else if is_source(&path) {
            files.push(path);
        }
    }
    Ok(())
}

/// Tests in files of their own do not count, as those inside a module do not.
fn is_source(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".rs") && !name.ends_with("tests.rs")
}

fn findings(text: &str) -> Vec<String> {
    let code: Vec<&str> = text
        .lines()
        .take_while(|line| line.trim() != "#[cfg(test)]")
        .collect();
    let mut found = Vec::new();
    if code.len() > FILE_LINES {
        found.push(format!(": {} lines, at most {FILE_LINES}", code.len()));
    }
    for (start, len) in functions(&code) {
        if len > FUNCTION_LINES {
            let line = start + 1;
            found.push(format!(
                ":{line}: function of {len} lines, at most {FUNCTION_LINES}"
            ));
        }
    }
    found
}

/// First line and number of lines of each function with a body. In formatted source it ends at the first line
/// that is a closing brace with the indentation of its `fn`.
fn functions(code: &[&str]) -> Vec<(usize, usize)> {
    let mut spans = Vec::new();
    for (start, line) in code
        .iter()
        .enumerate()
        .filter(|(_, line)| is_function(line))
    {
        let indent = line.len() - line.trim_start().len();
        let closing = format!("{}}}", " ".repeat(indent));
        let end = code[start..].iter().position(|line| *line == closing);
        spans.extend(end.map(|end| (start, end + 1)));
    }
    spans
}

/// Whether a function with a body begins here: `fn` after nothing but modifiers, and no `;` that ends it at once.
fn is_function(line: &str) -> bool {
    const MODIFIERS: [&str; 7] = [
        "pub",
        "pub(crate)",
        "pub(super)",
        "const",
        "async",
        "unsafe",
        "extern",
    ];
    let Some((before, _)) = line.split_once("fn ") else {
        return false;
    };
    let modified = before
        .split_whitespace()
        .all(|word| MODIFIERS.contains(&word) || word == "\"C\"");
    modified && !line.ends_with(';')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(lines: usize, indent: &str) -> String {
        let body = format!("{indent}    work();\n").repeat(lines - 2);
        format!("{indent}pub fn f() {{\n{body}{indent}}}\n")
    }

    #[test]
    fn the_limits_hold_on_both_sides() {
        assert!(findings(&function(FUNCTION_LINES, "")).is_empty());
        assert_eq!(findings(&function(FUNCTION_LINES + 1, "    ")).len(), 1);
        assert!(findings(&"// x\n".repeat(FILE_LINES)).is_empty());
        assert_eq!(findings(&"// x\n".repeat(FILE_LINES + 1)).len(), 1);
    }

    #[test]
    fn tests_do_not_count() {
        let text = format!("#[cfg(test)]\n{}", "// x\n".repeat(FILE_LINES + 1));
        assert!(findings(&text).is_empty());
    }
}
