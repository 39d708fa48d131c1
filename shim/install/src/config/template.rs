//! A template of containerd's configuration, which is no TOML: a section is added to it.

/// First and last line of what is added to a template, which is no TOML.
pub(super) const BEGIN: &str = "# slipway: begin (written by `slipway install`)";
pub(super) const END: &str = "# slipway: end";
/// A template of k3s and rke2 that adds to what they render.
const BASE_TEMPLATE: &str = "{{ template \"base\" . }}\n";

/// Adds the section to a template, in the place of an earlier one; fails as [`remove_block`] does.
pub fn add_block(template: Option<&str>, section: &str) -> Result<String, String> {
    let mut text = template.map_or_else(|| Ok(BASE_TEMPLATE.to_owned()), remove_block)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(format!("{text}{BEGIN}\n{section}{END}\n"))
}

/// Takes the section out of a template. Where its last line is missing nobody knows what below it is somebody else's: an error.
pub fn remove_block(template: &str) -> Result<String, String> {
    let mut begun = None;
    let mut kept = String::new();
    for (index, line) in template.split_inclusive('\n').enumerate() {
        match (begun, line.trim_end()) {
            (None, BEGIN) => begun = Some(index + 1),
            (Some(_), END) => begun = None,
            (Some(_), BEGIN) => break,
            (Some(_), _) => {}
            (None, _) => kept += line,
        }
    }
    match begun {
        None => Ok(kept),
        Some(number) => Err(format!(
            "line {number}: the section of `slipway install` has lost its last line, `{END}`: add it where the section ends"
        )),
    }
}

/// A template that only adds to what is rendered anyway.
pub fn is_base_template(text: &str) -> bool {
    text.trim() == BASE_TEMPLATE.trim()
}
