//! The one script that stores run: its commands and its answers.

use redis::{Cmd, Value};
use sha2::{Digest, Sha256};
use tollhouse_filters::values::hex;
use tollhouse_filters::world::{Charge, Tally, TenantId};

/// Spends charges; see there for what it takes and answers.
pub(super) const SCRIPT: &str = include_str!("script.lua");

const GIVE_BACK: &str = include_str!("give_back.lua");

/// Bytes of a budget's digest in its key: enough that nobody finds two keys with the same.
const DIGEST: usize = 16;

/// Loads the script; the answer is what [`by_digest`] calls it.
pub(super) fn load() -> Cmd {
    let mut command = redis::cmd("SCRIPT");
    command.arg("LOAD").arg(SCRIPT);
    command
}

/// What is to be decided in one step, and under which keys it is kept.
pub(super) struct Demand<'a, 'c, 't> {
    pub(super) keys: Vec<String>,
    pub(super) charges: &'a mut [Charge<'c>],
    pub(super) tallies: &'a mut [Tally<'t>],
}

impl<'a, 'c, 't> Demand<'a, 'c, 't> {
    pub(super) fn new(
        keyed: &Keyed<'_>,
        charges: &'a mut [Charge<'c>],
        tallies: &'a mut [Tally<'t>],
    ) -> Self {
        let budgets = charges.iter().map(|charge| keyed.budget(charge.key));
        let keys = budgets.chain(tallies.iter().map(|tally| keyed.quota(tally.key))).collect();
        Self { keys, charges, tallies }
    }

    /// Runs the loaded script.
    pub(super) fn by_digest(&self, sha: &str) -> Cmd {
        self.run("EVALSHA", sha)
    }

    /// Loads and runs the script, for a server that has lost it.
    pub(super) fn in_full(&self) -> Cmd {
        self.run("EVAL", SCRIPT)
    }

    fn run(&self, command: &str, script: &str) -> Cmd {
        let mut command = redis::cmd(command);
        command.arg(script).arg(self.keys.len()).arg(&self.keys).arg(self.charges.len());
        for charge in &*self.charges {
            let unit = u64::try_from(charge.budget.interval().as_nanos()).unwrap_or(u64::MAX);
            command.arg(charge.price()).arg(charge.budget.whole()).arg(charge.wanted()).arg(unit);
        }
        for tally in &*self.tallies {
            let ttl = tally.counts_for().saturating_add(1).saturating_mul(1000);
            let window = &tally.window;
            command.arg(tally.limit).arg(tally.cost).arg(window.slot).arg(window.slots).arg(ttl);
        }
        command
    }

    /// Leaves in charges and tallies what the script answered; whether it did what was demanded. None for an answer
    /// of another kind.
    pub(super) fn settle(&mut self, answer: &Value) -> Option<bool> {
        let Value::Array(parts) = answer else { return None };
        let [Value::Int(fits), Value::Array(debts), Value::Array(used), Value::Array(given)] = &parts[..]
        else {
            return None;
        };
        let (charges, tallies) = (self.charges.len(), self.tallies.len());
        if (debts.len(), given.len(), used.len()) != (charges, charges, tallies) {
            return None;
        }
        for ((debt, given), charge) in debts.iter().zip(given).zip(&mut *self.charges) {
            charge.settle(number(debt)?);
            charge.granted = number(given)?.try_into().ok()?;
        }
        for (used, tally) in used.iter().zip(&mut *self.tallies) {
            let Value::Array(numbers) = used else { return None };
            let slots = numbers.chunks_exact(2).map(|pair| Some((number(&pair[0])?, number(&pair[1])?)));
            tally.settle(slots.collect::<Option<Vec<_>>>()?);
        }
        Some(*fits == 1)
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// Gives back units of the quota with this key.
pub(super) fn give_back(key: &str, slot: u64, cost: u64) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(GIVE_BACK).arg(1).arg(key).arg(slot).arg(cost);
    command
}

/// Makes keys: of one length whatever they are for, and without what clients sent.
pub(super) struct Keyed<'a> {
    prefix: &'a str,
    tenant: TenantId,
    hasher: Sha256,
}

impl<'a> Keyed<'a> {
    pub(super) fn new(prefix: &'a str, tenant: TenantId, scope: &str) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(tenant.0.to_be_bytes());
        // Scopes and keys have any length, so this one's keeps them apart.
        hasher.update(u64::try_from(scope.len()).unwrap_or(u64::MAX).to_be_bytes());
        hasher.update(scope);
        Self { prefix, tenant, hasher }
    }

    pub(super) fn budget(&self, key: &[u8]) -> String {
        self.key("", key)
    }

    /// Of another kind than budgets, so that the two never meet.
    pub(super) fn quota(&self, key: &[u8]) -> String {
        self.key("q:", key)
    }

    pub(super) fn record(&self, key: &[u8]) -> String {
        self.key("r:", key)
    }

    pub(super) fn group(&self, key: &[u8]) -> String {
        self.key("g:", key)
    }

    fn key(&self, kind: &str, key: &[u8]) -> String {
        let digest = self.hasher.clone().chain_update(key).finalize();
        format!("{}:{kind}{}:{}", self.prefix, self.tenant.0, hex(&digest[..DIGEST]))
    }
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
        Keyed::new("t", TenantId(tenant), scope).budget(key)
    }

    fn settle(answer: &Value, charges: &mut [Charge<'_>]) -> Option<bool> {
        Demand { keys: Vec::new(), charges, tallies: &mut [] }.settle(answer)
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
        let (int, list) = (Value::Int, Value::Array);
        for answer in [
            Value::Nil,
            Value::Okay,
            Value::Array(vec![]),
            list(vec![int(1)]),
            list(vec![int(1), int(0), list(vec![]), list(vec![int(1)])]),
            list(vec![int(1), list(vec![int(0)]), list(vec![])]),
            list(vec![int(1), list(vec![int(-1)]), list(vec![]), list(vec![int(1)])]),
            list(vec![int(1), list(vec![Value::Nil]), list(vec![]), list(vec![int(1)])]),
            list(vec![int(1), list(vec![int(0)]), list(vec![]), list(vec![int(-1)])]),
            list(vec![int(1), list(vec![int(0), int(0)]), list(vec![]), list(vec![int(1)])]),
            list(vec![int(1), list(vec![int(0)]), list(vec![list(vec![])]), list(vec![int(1)])]),
        ] {
            assert_eq!(settle(&answer, &mut [charge(b"a")]), None, "{answer:?}");
        }
        let mut charges = [charge(b"a")];
        assert_eq!(
            settle(
                &list(vec![int(0), list(vec![int(4_000_000_000)]), list(vec![]), list(vec![int(2)])]),
                &mut charges
            ),
            Some(false)
        );
        let balance = charges[0].balance;
        assert_eq!((balance.available, balance.wait), (1, Duration::from_secs(1)));
    }
}
