//! From written stores to what filters keep their budgets in.

use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::sync::Arc;

use tollhouse_filters::tree::Path;
use tollhouse_filters::world::{OwnStore, Store, Stores};

use super::compile::{Compiler, Faults, Mode, below};
use crate::config;
use crate::config::Name;
use crate::store::RedisStore;

/// Builds the stores of a document. Those in which nothing changed live on with their connections; those of
/// a snapshot that will not serve reach nothing.
pub(super) fn build(
    compiler: &Compiler<'_>,
    written: &BTreeMap<Name, config::Store>,
    base: &FilePath,
    faults: &mut Faults<'_>,
) -> (Vec<Arc<RedisStore>>, Stores) {
    let mut built = Vec::new();
    let mut stores = Stores::new();
    let folder = (compiler.mode != Mode::Afar).then_some(base);
    for (name, options) in written {
        let path = Path::new().join("stores").join(name.as_str());
        let store = match RedisStore::new(name.shared(), options, folder, &*compiler.world.metrics) {
            Ok(store) => store,
            Err(problems) => {
                for (key, message) in problems {
                    faults.add(&path.concat(&below(key)), message);
                }
                // What names it is not wrong besides.
                stores.insert(name.shared(), Arc::new(OwnStore(compiler.world.state.clone())));
                continue;
            }
        };
        let shared: Arc<dyn Store> = match compiler.mode {
            Mode::Live => {
                let store = kept(compiler, store);
                built.push(store.clone());
                store
            }
            Mode::Dry | Mode::Afar => Arc::new(OwnStore(compiler.world.state.clone())),
        };
        stores.insert(name.shared(), shared);
    }
    (built, stores)
}

/// The store of the snapshot in use, if nothing changed in it.
fn kept(compiler: &Compiler<'_>, store: RedisStore) -> Arc<RedisStore> {
    let previous = compiler.previous.into_iter().flat_map(|snapshot| &snapshot.stores);
    let same = previous.into_iter().find(|known| known.name() == store.name() && known.same_shape(&store));
    same.cloned().unwrap_or_else(|| Arc::new(store))
}
