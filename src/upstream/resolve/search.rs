//! What a name without a dot at its end may stand for: the `search` and `ndots` of resolv.conf(5).

use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use hickory_resolver::proto::rr::Name;

use super::Failed;

/// Where relative names are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Search {
    domains: Vec<Name>,
    ndots: usize,
}

impl Search {
    /// As the settings say, which go on without it.
    pub(super) fn taken_out_of(config: &mut ResolverConfig, options: &ResolverOpts) -> Self {
        let (domain, search, servers) = std::mem::take(config).into_parts();
        *config = ResolverConfig::from_parts(None, Vec::new(), servers);
        // The domain of the host itself is one only where no list is written.
        let listed = if search.is_empty() { domain.into_iter().collect() } else { search };
        let mut domains: Vec<Name> = Vec::new();
        for one in listed {
            if !domains.contains(&one) {
                domains.push(one);
            }
        }
        Self { domains, ndots: options.ndots }
    }

    /// The absolute names to ask for, one after the other. One with enough dots is first taken as it is, others last.
    pub(super) fn names(&self, name: &Name) -> Vec<Name> {
        let mut itself = name.clone();
        itself.set_fqdn(true);
        if name.is_fqdn() {
            return vec![itself];
        }
        let has_dots = usize::from(name.num_labels()) > self.ndots || name.is_localhost();
        // One that becomes too long is no name.
        let mut names: Vec<Name> =
            self.domains.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).collect();
        names.iter_mut().for_each(|name| name.set_fqdn(true));
        names.insert(if has_dots { 0 } else { names.len() }, itself);
        names
    }

    /// What is found for the first of these names that has records. If none has, but one could not be told of, that is
    /// no answer: the name itself may be the one.
    pub(super) async fn first<T, F: Future<Output = Result<T, Failed>>>(
        &self,
        name: &Name,
        ask: impl Fn(Name) -> F,
        has_some: impl Fn(&T) -> bool,
    ) -> Result<T, Failed> {
        let (mut none, mut failed) = (None, None);
        for name in self.names(name) {
            match ask(name).await {
                Ok(found) if has_some(&found) => return Ok(found),
                Ok(found) => none = none.or(Some(found)),
                Err(why) => failed = failed.or(Some(why)),
            }
        }
        match (failed, none) {
            (None, Some(none)) => Ok(none),
            (failed, _) => Err(failed.unwrap_or_else(|| Failed::from("it is no name"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str, domains: &[&str], ndots: usize) -> Vec<String> {
        let name_of = |text: &str| Name::from_utf8(text).unwrap();
        let search = Search { domains: domains.iter().map(|text| name_of(text)).collect(), ndots };
        search.names(&name_of(name)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_are_looked_for_in_the_order_of_resolv_conf() {
        assert_eq!(
            names("a.test", &["x.test", "y.test."], 1),
            ["a.test.", "a.test.x.test.", "a.test.y.test."]
        );
        assert_eq!(names("a", &["x.test"], 1), ["a.x.test.", "a."]);
        assert_eq!(names("a.b.test", &["x.test"], 5), ["a.b.test.x.test.", "a.b.test."]);
        assert_eq!(names("a.", &["x.test"], 1), ["a."]);
        assert_eq!(names("localhost", &["x.test"], 1)[0], "localhost.", "RFC 6761 section 6.3");
        let long = vec!["a".repeat(63); 3].join(".");
        assert_eq!(names(&long, &[&long], 1), [format!("{long}.")]);
    }

    #[tokio::test]
    async fn a_name_that_could_not_be_told_of_does_not_come_to_nothing_by_another() {
        let x = Search { domains: vec![Name::from_utf8("x.test").unwrap()], ndots: 1 };
        let told = async |itself: Result<u8, Failed>, below: Result<u8, Failed>| {
            let ask = async |name: Name| if name.num_labels() == 2 { itself.clone() } else { below.clone() };
            x.first(&Name::from_utf8("a.test").unwrap(), ask, |found| *found > 0).await
        };
        let failed = || Err(Failed::from("SERVFAIL"));
        assert_eq!(told(failed(), Ok(0)).await, failed());
        assert_eq!(told(Ok(0), failed()).await, failed());
        assert_eq!(told(failed(), Ok(2)).await, Ok(2), "as the C library does");
        assert_eq!(told(Ok(1), Ok(2)).await, Ok(1));
        assert_eq!(told(Ok(0), Ok(0)).await, Ok(0));
    }

    #[test]
    fn the_settings_go_on_without_their_domains() {
        let domain = |text: &str| Name::from_utf8(text).unwrap();
        let (x, y) = (domain("x.test"), domain("y.test"));
        let listed = vec![y.clone(), x.clone(), y.clone()];
        let mut config = ResolverConfig::from_parts(Some(x.clone()), listed, Vec::new());
        let search = Search::taken_out_of(&mut config, &ResolverOpts::default());
        assert_eq!(search, Search { domains: vec![y, x], ndots: 1 });
        assert!(config.domain().is_none() && config.search().is_empty());
    }

    // resolv.conf(5): without a list, names are searched in the domain that is written, or that of the host.
    #[test]
    fn the_domain_of_the_host_is_searched_only_where_no_list_is_written() {
        let domain = |text: &str| Name::from_utf8(text).unwrap();
        let searched = |search: Vec<Name>| {
            let mut config = ResolverConfig::from_parts(Some(domain("host.test")), search, Vec::new());
            Search::taken_out_of(&mut config, &ResolverOpts::default()).domains
        };
        assert_eq!(searched(vec![domain("x.test")]), [domain("x.test")]);
        assert_eq!(searched(Vec::new()), [domain("host.test")]);
    }
}
