//! Fields that a later release has added to a stored object. While a cluster is upgraded node by node, agents
//! of both releases read and write the same objects: an earlier one leaves such fields as they are. What
//! users send is read strictly all the same. Depends on nothing of ours.

use std::collections::BTreeSet;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

/// What this release does not know of an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LaterFields {
    fields: Vec<Field>,
    /// The object without them, to recognise the items of its lists.
    known: Value,
}

#[derive(Clone, Debug, PartialEq)]
struct Field {
    /// From the object to what has the field.
    path: Vec<Step>,
    name: String,
    value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    Index(usize),
}

/// Reads a stored object, and what this release does not know of it.
///
/// # Errors
/// When it is wrong in another way.
pub(crate) fn read<T>(bytes: &[u8]) -> Result<(T, Option<LaterFields>), serde_json::Error>
where
    T: Serialize + DeserializeOwned,
{
    let error = match serde_json::from_slice(bytes) {
        Ok(object) => return Ok((object, None)),
        Err(error) => error,
    };
    let Ok(mut rest) = serde_json::from_slice::<Value>(bytes) else {
        return Err(error);
    };
    let mut fields = Vec::new();
    loop {
        // From text, as the API reads users' input: code for every type to read from values would be large.
        let text = serde_json::to_vec(&rest)?;
        let mut reader = serde_json::Deserializer::from_slice(&text);
        match serde_path_to_error::deserialize::<_, T>(&mut reader) {
            Ok(object) => {
                // As it will be written: without the fields that are left out where they have their defaults.
                let known = serde_json::to_value(&object)?;
                return Ok((object, Some(LaterFields { fields, known })));
            }
            Err(refused) if is_unknown_field(refused.inner()) => match take(&mut rest, refused.path()) {
                Some(field) => fields.push(field),
                None => return Err(error),
            },
            Err(_) => return Err(error),
        }
    }
}

/// The bytes of an object, with what this release does not know of it.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write<T: Serialize>(
    object: &T,
    later: Option<&LaterFields>,
) -> Result<Vec<u8>, serde_json::Error> {
    match later {
        None => serde_json::to_vec(object),
        Some(later) => serde_json::to_vec(&later.added_to(serde_json::to_value(object)?)),
    }
}

impl LaterFields {
    /// The names of the fields, for messages.
    pub(crate) fn names(&self) -> BTreeSet<&str> {
        self.fields.iter().map(|field| field.name.as_str()).collect()
    }

    /// Those of a part of the object that is stored as an object of its own as well.
    pub(crate) fn of_part(&self, names: &[&str]) -> Option<Self> {
        let is_step = |(step, name): (&Step, &&str)| matches!(step, Step::Name(found) if found == name);
        let below = self.fields.iter().filter_map(|field| {
            let (above, path) = field.path.split_at_checked(names.len())?;
            above.iter().zip(names).all(is_step).then(|| Field {
                path: path.to_vec(),
                ..field.clone()
            })
        });
        let fields: Vec<Field> = below.collect();
        let known = names
            .iter()
            .try_fold(&self.known, |value, name| value.get(name))?;
        (!fields.is_empty()).then(|| Self {
            fields,
            known: known.clone(),
        })
    }

    /// The object with the fields. Those of a list's items stay if the item is where and as it was.
    fn added_to(&self, object: Value) -> Value {
        let mut whole = object.clone();
        for field in &self.fields {
            if self.has_owner(field, &object)
                && let Some(Value::Object(owner)) = find(&mut whole, &field.path)
            {
                owner
                    .entry(field.name.clone())
                    .or_insert_with(|| field.value.clone());
            }
        }
        whole
    }

    fn has_owner(&self, field: &Field, object: &Value) -> bool {
        let (mut now, mut before) = (object, &self.known);
        for step in &field.path {
            let next = match step {
                Step::Name(name) => now.get(name).zip(before.get(name)),
                Step::Index(index) => now
                    .get(index)
                    .zip(before.get(index))
                    .filter(|(now, before)| now == before),
            };
            let Some(next) = next else { return false };
            (now, before) = next;
        }
        true
    }
}

/// serde has a type for its errors, but no kinds.
fn is_unknown_field(error: &serde_json::Error) -> bool {
    error.to_string().starts_with("unknown field")
}

/// Takes a field out of an object.
fn take(object: &mut Value, path: &Path) -> Option<Field> {
    let steps = path.iter().map(|segment| match segment {
        Segment::Map { key } => Some(Step::Name(key.clone())),
        Segment::Enum { variant } => Some(Step::Name(variant.clone())),
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Unknown => None,
    });
    let mut path: Vec<Step> = steps.collect::<Option<_>>()?;
    let Some(Step::Name(name)) = path.pop() else {
        return None;
    };
    let value = find(object, &path)?.as_object_mut()?.remove(&name)?;
    Some(Field { path, name, value })
}

fn find<'a>(object: &'a mut Value, path: &[Step]) -> Option<&'a mut Value> {
    path.iter().try_fold(object, |value, step| match step {
        Step::Name(name) => value.get_mut(name),
        Step::Index(index) => value.get_mut(index),
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Object {
        name: String,
        #[serde(default)]
        status: Status,
        #[serde(default)]
        ports: Vec<Port>,
        #[serde(default)]
        mode: Option<Mode>,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Status {
        state: String,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Port {
        number: u16,
        #[serde(default)]
        label: String,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        Replicated(Status),
    }

    fn stored() -> Value {
        json!({
            "name": "web",
            "since": 5,
            "status": {"state": "running", "cause": {"code": [1, 2]}},
            "ports": [{"number": 80, "scope": "lan"}, {"number": 81, "scope": "wan", "weight": 2}],
            "mode": {"replicated": {"state": "", "spare": 1}}
        })
    }

    fn read_stored() -> (Object, LaterFields) {
        let (object, later) = read(stored().to_string().as_bytes()).unwrap();
        (object, later.unwrap())
    }

    fn written(object: &Object, later: &LaterFields) -> Value {
        serde_json::from_slice(&write(object, Some(later)).unwrap()).unwrap()
    }

    #[test]
    fn what_a_later_release_has_added_is_written_as_it_was_read() {
        let (mut object, later) = read_stored();
        assert_eq!(
            later.names().into_iter().collect::<Vec<_>>(),
            ["cause", "scope", "since", "spare", "weight"]
        );
        object.status.state = "failed".to_owned();
        let written = written(&object, &later);
        let mut expected = stored();
        expected["status"]["state"] = json!("failed");
        for port in expected["ports"].as_array_mut().unwrap() {
            port["label"] = json!("");
        }
        assert_eq!(written, expected);
    }

    #[test]
    fn fields_of_an_item_that_has_changed_or_moved_go() {
        let (mut object, later) = read_stored();
        object.ports[0].number = 8080;
        let ports = &written(&object, &later)["ports"];
        assert_eq!(
            ports,
            &json!([{"number": 8080, "label": ""}, {"number": 81, "label": "", "scope": "wan", "weight": 2}])
        );
        object.ports.remove(0);
        object.mode = None;
        let written = written(&object, &later);
        assert_eq!(written["ports"], json!([{"number": 81, "label": ""}]));
        assert_eq!((&written["mode"], &written["since"]), (&json!(null), &json!(5)));
    }

    #[test]
    fn a_part_that_is_stored_by_itself_has_its_own() {
        let (object, later) = read_stored();
        let status = later.of_part(&["status"]).unwrap();
        assert_eq!(
            serde_json::from_slice::<Value>(&write(&object.status, Some(&status)).unwrap()).unwrap(),
            stored()["status"]
        );
        assert_eq!(later.of_part(&["name"]), None);
        assert_eq!(later.of_part(&["status", "state"]), None);
    }

    #[test]
    fn an_object_of_this_release_has_none() {
        let object = Object {
            name: "web".to_owned(),
            ..Object::default()
        };
        let bytes = write(&object, None).unwrap();
        assert_eq!(read::<Object>(&bytes).unwrap(), (object, None));
    }

    #[test]
    fn what_is_wrong_in_another_way_is_refused() {
        for wrong in [
            json!({"since": 5}),
            json!({"name": 5, "since": 5}),
            json!({"name": "web", "mode": {"global": {}}}),
        ] {
            assert!(read::<Object>(wrong.to_string().as_bytes()).is_err(), "{wrong}");
        }
        assert!(read::<Object>(b"{").is_err());
    }
}
