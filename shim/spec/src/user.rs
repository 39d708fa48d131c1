//! User namespaces: the ids of a pod, and where they come back in its root and its volumes.
//!
//! A pod has one mapping. Whatever names another one is refused, so that its user namespace maps the ids of mounts, too.

use slipway_protocol::Mount;

use crate::namespaces::Namespace;
use crate::oci::{self, IdMapping};
use crate::plan::refuse;
use crate::{Error, parse_options};

/// A pod's user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNamespace {
    /// Where it is found.
    pub path: String,
    uids: Vec<IdMapping>,
    gids: Vec<IdMapping>,
}

/// The id outside of one inside.
fn outside(mappings: &[IdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|m| {
        let offset = id.checked_sub(m.inside).filter(|o| *o < m.size)?;
        m.outside.checked_add(offset)
    })
}

/// As the options of a snapshotter's mount have it.
fn text(mappings: &[IdMapping]) -> String {
    let one = |m: &IdMapping| format!("{}:{}:{}", m.inside, m.outside, m.size);
    mappings.iter().map(one).collect::<Vec<_>>().join(",")
}

impl UserNamespace {
    pub(crate) fn of(namespace: Namespace, linux: &oci::Linux) -> Result<Option<Self>, Error> {
        let (uids, gids) = (&linux.uid_mappings, &linux.gid_mappings);
        let path = match namespace {
            Namespace::Path(path) => path,
            Namespace::New => {
                return Err(refuse(
                    "linux.namespaces",
                    "a user namespace without a path: that of a pod is joined, which containerd 2.0 and later make; set hostUsers: true",
                ));
            }
            Namespace::Host if uids.is_empty() && gids.is_empty() => return Ok(None),
            Namespace::Host => {
                return Err(refuse(
                    "linux.uidMappings",
                    "mappings without a user namespace; remove them",
                ));
            }
        };
        for (field, mappings) in [("linux.uidMappings", uids), ("linux.gidMappings", gids)] {
            if outside(mappings, 0).is_none() {
                return Err(refuse(
                    field,
                    format!(
                        "{:?} does not map 0, the owner of the image's files",
                        text(mappings)
                    ),
                ));
            }
        }
        Ok(Some(Self {
            path,
            uids: uids.clone(),
            gids: gids.clone(),
        }))
    }

    /// The host's id of a user inside.
    pub fn host_uid(&self, uid: u32) -> Option<u32> {
        outside(&self.uids, uid)
    }

    /// For the guest.
    pub fn joined(&self) -> slipway_protocol::UserNamespace {
        slipway_protocol::UserNamespace {
            path: self.path.clone(),
            // `of` has refused what does not map them.
            root_uid: outside(&self.uids, 0).unwrap_or(u32::MAX),
            root_gid: outside(&self.gids, 0).unwrap_or(u32::MAX),
        }
    }

    /// That of a further process of the container.
    pub(crate) fn of_exec(&self, user: &oci::User) -> Result<Self, Error> {
        self.check_ids(user)?;
        Ok(Self {
            path: "ns/user".into(),
            ..self.clone()
        })
    }

    /// Refuses a process whose ids do not exist inside.
    pub(crate) fn check_ids(&self, user: &oci::User) -> Result<(), Error> {
        let unmapped = |field, mappings: &[IdMapping], ids: &[u32]| {
            let id = ids.iter().find(|id| outside(mappings, **id).is_none());
            id.map_or(Ok(()), |id| {
                Err(refuse(
                    field,
                    format!(
                        "{id} does not exist in the pod's user namespace ({}); choose another, or set hostUsers: true",
                        text(mappings)
                    ),
                ))
            })
        };
        unmapped("process.user.uid", &self.uids, &[user.uid])?;
        unmapped("process.user.gid", &self.gids, &[user.gid])?;
        unmapped(
            "process.user.additionalGids",
            &self.gids,
            &user.additional_gids,
        )
    }
}

/// Whether a volume's ids are those of its pod.
pub(crate) fn is_mapped(
    index: usize,
    mount: &oci::Mount,
    user: Option<&UserNamespace>,
) -> Result<bool, Error> {
    let (uids, gids) = (&mount.uid_mappings, &mount.gid_mappings);
    if uids.is_empty() && gids.is_empty() {
        return Ok(false);
    }
    match user {
        Some(user) if user.uids == *uids && user.gids == *gids => Ok(true),
        _ => Err(refuse(
            &format!("mounts[{index}].uidMappings"),
            format!(
                "ids of {} that are not mapped as those of the pod, linux.uidMappings and linux.gidMappings; remove them",
                mount.destination
            ),
        )),
    }
}

/// One of a snapshotter's mounts of a root file system.
///
/// # Errors
/// Its ids are not mapped as those of the pod.
pub fn parse_root(
    kind: &str,
    source: &str,
    options: &[String],
    user: Option<&UserNamespace>,
) -> Result<Mount, Error> {
    let mut mount = parse_options(kind, source, "", options);
    if !mount.data.contains("idmap=") {
        return Ok(mount);
    }
    let mapped = user.is_some_and(|user| {
        let [uids, gids] = [("uid", &user.uids), ("gid", &user.gids)]
            .map(|(name, mappings)| format!("{name}map={}", text(mappings)));
        options.contains(&uids) && options.contains(&gids)
    });
    if !mapped {
        return Err(refuse(
            "rootfs",
            format!(
                "options {:?}: ids that are not mapped as those of the pod, linux.uidMappings and linux.gidMappings",
                mount.data
            ),
        ));
    }
    let own: Vec<String> = options
        .iter()
        .filter(|o| !o.starts_with("uidmap=") && !o.starts_with("gidmap="))
        .cloned()
        .collect();
    mount = parse_options(kind, source, "", &own);
    mount.idmapped = true;
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Plan, parse};
    use serde_json::{Value, json};

    fn spec(change: impl FnOnce(&mut Value)) -> Value {
        let ids = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        let mut spec = json!({
            "process": {"args": ["/app.wasm"], "cwd": "/", "user": {"uid": 1, "gid": 2, "additionalGids": [3]}},
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/v", "type": "bind", "source": "/v", "options": ["rbind"], "uidMappings": ids, "gidMappings": ids},
                       {"destination": "/dev/shm", "type": "bind", "source": "/s", "options": ["rbind"]}],
            "linux": {"namespaces": [{"type": "user", "path": "/proc/7/ns/user"}], "uidMappings": ids, "gidMappings": ids}
        });
        change(&mut spec);
        spec
    }

    fn plan(change: impl FnOnce(&mut Value)) -> Plan {
        parse(spec(change).to_string().as_bytes()).unwrap()
    }

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        plan(change).unsupported.unwrap_or_default()
    }

    #[test]
    fn a_pods_ids_are_those_inside_and_its_volumes_have_them() {
        let plan = plan(|_| {});
        assert_eq!(plan.unsupported, None);
        let user = plan.user.as_ref().unwrap();
        assert_eq!(
            (plan.program.uid, user.host_uid(plan.program.uid)),
            (1, Some(100_001))
        );
        assert_eq!(
            user.joined(),
            slipway_protocol::UserNamespace {
                path: "/proc/7/ns/user".into(),
                root_uid: 100_000,
                root_gid: 100_000
            }
        );
        let mapped: Vec<bool> = plan.mounts.iter().map(|m| m.idmapped).collect();
        assert_eq!(mapped, [true, false]);
    }

    #[test]
    fn what_is_not_mapped_as_the_pod_is_refused_by_name() {
        let own = json!([{"containerID": 0, "hostID": 5, "size": 9}]);
        let without = |s: &mut Value| s["linux"]["namespaces"] = json!([]);
        assert!(refused(without).contains("linux.uidMappings"));
        let new = |s: &mut Value| s["linux"]["namespaces"] = json!([{"type": "user"}]);
        assert!(refused(new).contains("hostUsers: true"));
        let unmapped = json!([{"containerID": 1, "hostID": 5, "size": 9}]);
        let rootless = |s: &mut Value| s["linux"]["gidMappings"] = unmapped;
        assert!(refused(rootless).contains("linux.gidMappings"));
        let volume = |s: &mut Value| s["mounts"][0]["uidMappings"] = own;
        assert!(refused(volume).contains("mounts[0].uidMappings"));
        for (field, value) in [
            ("uid", json!(65_536)),
            ("gid", json!(65_536)),
            ("additionalGids", json!([70_000])),
        ] {
            let stranger = |s: &mut Value| s["process"]["user"][field] = value;
            assert!(refused(stranger).contains(&format!("process.user.{field}")));
        }
        let process = json!({"args": ["/app.wasm"], "user": {"uid": 65_536}}).to_string();
        assert!(plan(|_| {}).exec(process.as_bytes()).is_err());
    }

    #[test]
    fn a_root_is_mapped_as_the_pod_or_not_at_all() {
        let user = plan(|_| {}).user;
        let parse = |ids: &str, user: Option<&UserNamespace>| {
            let ids = [format!("uidmap={ids}"), format!("gidmap={ids}")];
            let options = [
                &["index=off".into()],
                ids.as_slice(),
                &["lowerdir=/l".into()],
            ]
            .concat();
            parse_root("overlay", "overlay", &options, user)
        };
        let mount = parse("0:100000:65536", user.as_ref()).unwrap();
        assert_eq!(
            (mount.data.as_str(), mount.idmapped),
            ("index=off,lowerdir=/l", true)
        );
        for (ids, user) in [("0:100000:65537", user.as_ref()), ("0:100000:65536", None)] {
            assert!(parse(ids, user).unwrap_err().to_string().contains("rootfs"));
        }
        let plain = parse_root("bind", "/s", &["rbind".into()], user.as_ref()).unwrap();
        assert!(!plain.idmapped);
    }
}
