use std::fmt;
use std::str::FromStr;

use crate::ImageError;

/// An image's name in full: registry, path and tag, as in `docker.io/library/app:latest`.
///
/// Parsing completes short names as Docker and containerd's CRI do: without a registry it is `docker.io`, there
/// without a path it is `library/`, without a tag it is `latest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    name: String,
    tag: String,
}

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_PATH: &str = "library";
/// The distribution specification's bounds, in bytes.
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// The name under which containerd's CRI has an image that a pod names `written`: completed as a [`Reference`] is, and where
/// there is a digest (`app:1@sha256:…`) without the tag.
///
/// # Errors
/// [`ImageError::Reference`].
pub fn full_name(written: &str) -> Result<String, ImageError> {
    match written.split_once('@') {
        None => written.parse().map(|name: Reference| name.to_string()),
        Some((tagged, digest)) => {
            let Reference { name, .. } = tagged.parse()?;
            Ok(format!("{name}@{digest}"))
        }
    }
}

impl Reference {
    /// The tag alone.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The name as Docker shows it: without the parts that it completes.
    pub fn short(&self) -> String {
        let docker = self
            .name
            .strip_prefix(DEFAULT_REGISTRY)
            .and_then(|path| path.strip_prefix('/'));
        let name = docker.map_or(self.name.as_str(), |path| {
            let library = path
                .strip_prefix(DEFAULT_PATH)
                .and_then(|path| path.strip_prefix('/'));
            library.unwrap_or(path)
        });
        format!("{name}:{}", self.tag)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Reference, ImageError> {
        let fail = |reason| {
            Err(ImageError::Reference {
                name: text.chars().take(MAX_NAME).collect(),
                reason,
            })
        };
        if text.contains('@') {
            return fail("a digest is the result of the build, not part of the name");
        }
        // A colon before the last slash belongs to the registry's port.
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (text, "latest"),
        };
        let (registry, path) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
                (first, rest.to_owned())
            }
            Some(_) => (DEFAULT_REGISTRY, name.to_owned()),
            None => (DEFAULT_REGISTRY, format!("{DEFAULT_PATH}/{name}")),
        };
        let (host, port) = registry
            .split_once(':')
            .map_or((registry, None), |(host, port)| (host, Some(port)));
        let is_host = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if !host.split('.').all(is_host) {
            return fail("the registry is not a host name");
        }
        if port.is_some_and(|port| port.parse::<u16>().is_err()) {
            return fail("the registry's port is not a number up to 65535");
        }
        if !path.split('/').all(is_path_component) {
            return fail(
                "path parts consist of lower-case letters and digits, separated by '.', '_', '__' or '-'",
            );
        }
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let is_tag = tag.len() <= MAX_TAG
            && tag.bytes().next().is_some_and(word)
            && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
        if !is_tag {
            return fail(
                "a tag has 1 to 128 letters, digits, '_', '.' and '-', and starts with none of the last two",
            );
        }
        let name = format!("{registry}/{path}");
        if name.len() > MAX_NAME {
            return fail("it is longer than 255 bytes");
        }
        Ok(Reference {
            name,
            tag: tag.to_owned(),
        })
    }
}

/// The distribution specification: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends_well = |b: Option<u8>| b.is_some_and(alphanumeric);
    let separator = |part: &str| {
        part.is_empty()
            || part == "."
            || part == "_"
            || part == "__"
            || part.bytes().all(|b| b == b'-')
    };
    ends_well(component.bytes().next())
        && ends_well(component.bytes().last())
        && component
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed_and_shortened_again() {
        for (text, full, short) in [
            ("app", "docker.io/library/app:latest", "app:latest"),
            ("app:1.0", "docker.io/library/app:1.0", "app:1.0"),
            ("team/app", "docker.io/team/app:latest", "team/app:latest"),
            (
                "docker.io/team/app",
                "docker.io/team/app:latest",
                "team/app:latest",
            ),
            ("localhost/app:x", "localhost/app:x", "localhost/app:x"),
            (
                "localhost:5000/app",
                "localhost:5000/app:latest",
                "localhost:5000/app:latest",
            ),
            (
                "example.com/a/b-c/d__e.f:V1",
                "example.com/a/b-c/d__e.f:V1",
                "example.com/a/b-c/d__e.f:V1",
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(
                (reference.to_string(), reference.short()),
                (full.to_owned(), short.to_owned())
            );
        }
    }

    #[test]
    fn a_pods_name_of_an_image_is_completed_and_a_digest_replaces_the_tag() {
        for (written, full) in [
            ("app", "docker.io/library/app:latest"),
            ("team/app:1", "docker.io/team/app:1"),
            ("example.com:5000/app", "example.com:5000/app:latest"),
            ("app@sha256:00", "docker.io/library/app@sha256:00"),
            ("team/app:1@sha256:00", "docker.io/team/app@sha256:00"),
            (
                "example.com:5000/app:1@sha256:00",
                "example.com:5000/app@sha256:00",
            ),
        ] {
            assert_eq!(full_name(written).unwrap(), full);
        }
        assert!(full_name("App@sha256:00").is_err());
    }

    #[test]
    fn malformed_names_are_refused() {
        for text in [
            "",
            ":tag",
            "App",
            "a//b",
            "a/",
            "/a",
            "a:",
            "a:.x",
            "a:b:c",
            "a@sha256:00",
            "a b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "ex ample.com/a",
            "example.com:99999/a",
            ".com/a",
            "a:ü",
            &"a".repeat(256),
            &format!("a:{}", "t".repeat(129)),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
