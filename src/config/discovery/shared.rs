//! What types of registries have in common, as the user writes it: each key is declared once, here.

use tollhouse_filters::values::{Duration, Secret};

use crate::config::upstream::Tls;

/// Settings that a type of registry may share with others.
pub trait Shared {
    /// Whether the last backends stay in use when the registry says that there are none.
    fn keeps_last_on_empty(&self) -> bool;

    /// Who the gateway is to the registry, and what proves it, as far as they are written.
    fn login(&self) -> (Option<&str>, Option<&Secret>) {
        (None, None)
    }

    /// Both of [`login`](Self::login).
    fn credentials(&self) -> Option<(&str, &Secret)> {
        let (username, password) = self.login();
        username.zip(password)
    }

    /// How it is reached over TLS, if something is written of that.
    fn tls(&self) -> Option<&Tls> {
        None
    }

    /// How often it is asked, if it is asked again and again.
    fn interval(&self) -> Option<Duration> {
        None
    }
}

/// Declares the options of a type of registry: its own, then those of the shared ones that it is `with`.
/// `keep_last_on_empty` belongs to all; `interval` says that it is among its own.
macro_rules! registry {
    ($(#[$attribute:meta])* pub struct $name:ident { $($own:tt)* } $(with $($shared:ident),+)?) => {
        registry!(@options [$(#[$attribute])* pub struct $name] [$($own)*] $($($shared)+)?);

        impl $crate::config::discovery::Shared for $name {
            fn keeps_last_on_empty(&self) -> bool {
                self.keep_last_on_empty
            }

            $($(registry!(@method $shared);)+)?
        }
    };
    (@options [$($head:tt)*] [$($options:tt)*] login $($more:ident)*) => {
        registry!(@options [$($head)*] [$($options)*
            /// Who the gateway is to the registry; needs `password`. Default: none, nobody in particular. Example: `gateway`.
            #[serde(default)]
            pub username: Option<String>,
            /// What proves it; needs `username`. Default: none. Example: `${env:REGISTRY_PASSWORD}`.
            #[serde(default)]
            pub password: Option<tollhouse_filters::values::Secret>,
        ] $($more)*);
    };
    (@options [$($head:tt)*] [$($options:tt)*] tls $($more:ident)*) => {
        registry!(@options [$($head)*] [$($options)*
            /// TLS to the registry, if its URL is https. Default: `{}`. Example: `{ca: certs/registry-ca.pem}`.
            #[serde(default)]
            pub tls: Option<$crate::config::upstream::Tls>,
        ] $($more)*);
    };
    (@options $head:tt $options:tt interval $($more:ident)*) => {
        registry!(@options $head $options $($more)*);
    };
    (@options [$($head:tt)*] [$($options:tt)*]) => {
        #[derive(Debug, Clone, PartialEq, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        $($head)* {
            $($options)*
            /// Whether the last backends stay in use when the registry says that there are none. Default: `false`, requests are answered with 503 then. Example: `true`.
            #[serde(default)]
            pub keep_last_on_empty: bool,
        }
    };
    (@method login) => {
        fn login(&self) -> (Option<&str>, Option<&tollhouse_filters::values::Secret>) {
            (self.username.as_deref(), self.password.as_ref())
        }
    };
    (@method tls) => {
        fn tls(&self) -> Option<&$crate::config::upstream::Tls> {
            self.tls.as_ref()
        }
    };
    (@method interval) => {
        fn interval(&self) -> Option<tollhouse_filters::values::Duration> {
            Some(self.interval)
        }
    };
}

pub(super) use registry;
