use super::*;

fn end(status: u8) -> End {
    End::new(status, Cause::Status, "")
}

fn hear(messages: impl IntoIterator<Item = FromGuest>) -> (Heard, Vec<Result<(), String>>) {
    let mut heard = Heard {
        resolved: true,
        ..Heard::default()
    };
    let taken = messages.into_iter().map(|m| heard.take(m).map(drop));
    let taken = taken.collect();
    (heard, taken)
}

#[test]
fn a_guest_is_loaded_once_and_ends_once() {
    let ready = || FromGuest::Ready(Timeline::default());
    let (heard, taken) = hear([ready(), FromGuest::Ended(end(3))]);
    assert_eq!(heard.end, Some(end(3)));
    assert_eq!(taken, [Ok(()), Ok(())]);
    let failed = || FromGuest::Failed("no".into());
    for second in [
        ready(),
        failed(),
        FromGuest::Waiting,
        FromGuest::NotWasm("x".into()),
    ] {
        for first in [ready(), failed()] {
            let name = second.name();
            let (_, taken) = hear([first]);
            assert_eq!(taken, [Ok(())]);
            let mut heard = Heard {
                resolved: true,
                loaded: true,
                end: None,
            };
            let again = heard.take(match name {
                "Ready" => ready(),
                "Failed" => failed(),
                "Waiting" => FromGuest::Waiting,
                _ => FromGuest::NotWasm("x".into()),
            });
            assert_eq!(again.unwrap_err(), format!("{name} at the wrong time"));
        }
    }
}

#[test]
fn one_that_was_left_compiling_is_resolved_once_before_it_is_ready() {
    let resolved = || FromGuest::Resolved(Timeline::default());
    let ready = || FromGuest::Ready(Timeline::default());
    let mut heard = Heard::default();
    assert!(heard.take(ready()).is_err());
    assert!(heard.take(resolved()).is_ok_and(|loaded| loaded.is_none()));
    assert!(heard.take(resolved()).is_err());
    assert!(heard.take(ready()).is_ok_and(|loaded| loaded.is_some()));
    let failed = Heard::default().take(FromGuest::Failed("no".into()));
    assert!(failed.is_ok_and(|loaded| loaded.is_some_and(|loaded| loaded.is_err())));
}

#[test]
fn what_belongs_to_resolving_may_not_come_while_loading() {
    for message in [FromGuest::Waiting, FromGuest::Resolved(Timeline::default())] {
        let (_, taken) = hear([message]);
        assert!(taken[0].is_err());
    }
}
