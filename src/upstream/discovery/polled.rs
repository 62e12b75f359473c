//! Registries that are asked again and again, as they do not hold questions back until something changes.

use std::time::Duration;

use async_trait::async_trait;

use super::{Directory, Failed, Instance, Tell, jittered};

/// A registry that answers at once, whether something changed or not.
#[async_trait]
pub(super) trait Polled: Send + Sync {
    /// Between two questions, give or take a tenth.
    fn interval(&self) -> Duration;

    /// Asks for the whole set.
    async fn instances(&self) -> Result<Vec<Instance>, Failed>;
}

#[async_trait]
impl<P: Polled> Directory for P {
    async fn follow(&self, tell: &Tell) -> Failed {
        loop {
            match self.instances().await {
                Ok(instances) => tell.set(instances),
                Err(why) => return why,
            }
            tokio::time::sleep(jittered(self.interval())).await;
        }
    }
}
