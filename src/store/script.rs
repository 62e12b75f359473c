//! The one script that stores run: its commands and its answers.

use redis::{Cmd, Value};
use sha2::{Digest, Sha256};
use tollhouse_filters::values::hex;
use tollhouse_filters::world::{Charge, TenantId};

/// Spends charges; see there for what it takes and answers.
pub(super) const SCRIPT: &str = include_str!("script.lua");

/// Bytes of a budget's digest in its key: enough that nobody finds two keys with the same.
const DIGEST: usize = 16;

/// Loads the script; the answer is what [`by_digest`] calls it.
pub(super) fn load() -> Cmd {
    let mut command = redis::cmd("SCRIPT");
    command.arg("LOAD").arg(SCRIPT);
    command
}

/// Runs the loaded script.
pub(super) fn by_digest(sha: &str, keys: &[String], charges: &[Charge<'_>]) -> Cmd {
    run("EVALSHA", sha, keys, charges)
}

/// Loads and runs the script, for a server that has lost it.
pub(super) fn in_full(keys: &[String], charges: &[Charge<'_>]) -> Cmd {
    run("EVAL", SCRIPT, keys, charges)
}

fn run(command: &str, script: &str, keys: &[String], charges: &[Charge<'_>]) -> Cmd {
    let mut command = redis::cmd(command);
    command.arg(script).arg(keys.len());
    for key in keys {
        command.arg(key);
    }
    for charge in charges {
        command.arg(charge.price()).arg(charge.budget.whole());
    }
    command
}

/// The keys of budgets: of one length whatever they are for, and without what clients sent.
pub(super) fn keys(prefix: &str, tenant: TenantId, scope: &str, charges: &[Charge<'_>]) -> Vec<String> {
    let mut hasher = Sha256::new();
    hasher.update(tenant.0.to_be_bytes());
    // Scopes and keys have any length, so this one's keeps them apart.
    hasher.update(u64::try_from(scope.len()).unwrap_or(u64::MAX).to_be_bytes());
    hasher.update(scope);
    let key = |charge: &Charge<'_>| {
        let digest = hasher.clone().chain_update(charge.key).finalize();
        format!("{prefix}:{}:{}", tenant.0, hex(&digest[..DIGEST]))
    };
    charges.iter().map(key).collect()
}

/// Leaves in the charges what the script answered; whether they were spent. None for an answer of another kind.
pub(super) fn settle(answer: &Value, charges: &mut [Charge<'_>]) -> Option<bool> {
    let Value::Array(numbers) = answer else { return None };
    let [Value::Int(fits), debts @ ..] = &numbers[..] else { return None };
    if debts.len() != charges.len() {
        return None;
    }
    for (debt, charge) in debts.iter().zip(charges) {
        let Value::Int(debt) = debt else { return None };
        charge.settle(u64::try_from(*debt).ok()?);
    }
    Some(*fits == 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tollhouse_filters::world::Budget;

    use super::*;

    fn charge(key: &[u8]) -> Charge<'_> {
        Charge::new(key, Budget::new(Duration::from_secs(1), 5).expect("a budget"), 2)
    }

    fn key(tenant: u32, scope: &str, key: &[u8]) -> String {
        keys("t", TenantId(tenant), scope, &[charge(key)]).remove(0)
    }

    #[test]
    fn keys_have_one_length_and_hold_nothing_of_what_clients_sent() {
        let long = vec![b'k'; 100_000];
        for text in [&b""[..], b"\0\r\n {}", "ключ".as_bytes(), &long] {
            let key = key(7, "each-client", text);
            assert!(key.starts_with("t:7:") && key.len() == 4 + 2 * DIGEST, "{key}");
            assert!(key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b':'), "{key}");
        }
    }

    #[test]
    fn tenants_filters_and_keys_are_not_run_together() {
        let keys = [
            key(0, "a", b"bc"),
            key(1, "a", b"bc"),
            key(0, "ab", b"c"),
            key(0, "", b"abc"),
            key(0, "abc", b""),
            key(0, "a", b"bc\0"),
        ];
        let distinct: std::collections::HashSet<&String> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn answers_of_another_kind_are_refused() {
        let int = Value::Int;
        for answer in [
            Value::Nil,
            Value::Okay,
            Value::Array(vec![]),
            Value::Array(vec![int(1)]),
            Value::Array(vec![int(1), int(-1)]),
            Value::Array(vec![int(1), Value::Nil]),
            Value::Array(vec![int(1), int(0), int(0)]),
        ] {
            assert_eq!(settle(&answer, &mut [charge(b"a")]), None, "{answer:?}");
        }
        let mut charges = [charge(b"a")];
        assert_eq!(settle(&Value::Array(vec![int(0), int(4_000_000_000)]), &mut charges), Some(false));
        let balance = charges[0].balance;
        assert_eq!((balance.available, balance.wait), (1, Duration::from_secs(1)));
    }
}
