//! Lets symbols of Node.js be resolved when the module is loaded.

fn main() {
    napi_build::setup();
}
