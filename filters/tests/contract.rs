//! What every filter can rely on, shown with filters made for these tests and the public API alone.

mod contract {
    mod body;
    mod failure;
    mod harness;
    mod order;
    mod world;
}
