//! The life of a pod's shim.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use crate::pod::Pod;
use crate::settings::Settings;
use crate::{sandbox, service};

/// Serves a pod on its socket until containerd says that it is over.
pub fn serve(settings: Settings, socket: UnixListener) -> std::result::Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|e| format!("runtime: {e}"))?;
    let served: std::result::Result<_, String> = runtime.block_on(async {
        let pod = Arc::new(Pod::new(settings));
        sandbox::make_early(&pod);
        // What others have left in it is worked off when pods are started, whatever these wait for.
        let queue = pod.queue("");
        tokio::spawn(async move { queue.resume().await });
        let mut server = service::listen(socket, pod.clone()).await?;
        pod.over().await;
        pod.delegate.stop().await;
        pod.events.flush().await;
        let _ = tokio::time::timeout(Duration::from_secs(1), server.shutdown()).await;
        drop(pod.take_spare());
        drop(pod.take_early());
        Ok((pod.unfinished(), pod))
    });
    // Ends the Creates that go on, and does not wait for what they take back.
    runtime.shutdown_background();
    let (unfinished, pod) = served?;
    for cgroup in unfinished {
        if let Err(e) = cgroup.remove() {
            pod.log.error(&e.to_string());
        }
    }
    Ok(())
}
