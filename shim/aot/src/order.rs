//! What is to be done, from the command line.

use slipway_cache::Tier;
use slipway_module::Digest;

/// `quick|full DIGEST MEMORY SECONDS`.
#[derive(Debug, PartialEq, Eq)]
pub struct Order {
    /// How thoroughly it is optimised.
    pub tier: Tier,
    /// Of the module.
    pub digest: Digest,
    /// Bytes that may be used.
    pub memory: u64,
    /// CPU time that may be used, all threads together.
    pub seconds: u64,
}

impl Order {
    /// None for arguments of another form.
    pub fn read(arguments: &[String]) -> Option<Self> {
        let [tier, digest, memory, seconds] = arguments else {
            return None;
        };
        Some(Self {
            tier: match tier.as_str() {
                "quick" => Tier::Quick,
                "full" => Tier::Full,
                _ => return None,
            },
            digest: digest.parse().ok()?,
            memory: memory.parse().ok()?,
            seconds: seconds.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Option<Order> {
        let arguments: Vec<_> = line.split(' ').map(String::from).collect();
        Order::read(&arguments)
    }

    #[test]
    fn an_order_has_four_parts() {
        let digest = "0f".repeat(32);
        let order = read(&format!("full {digest} 1000 60")).unwrap();
        assert_eq!(
            (order.tier, order.memory, order.seconds),
            (Tier::Full, 1000, 60)
        );
        assert_eq!(order.digest.to_string(), digest);
        for wrong in [
            "".to_string(),
            format!("full {digest} 1000"),
            format!("full {digest} 1000 60 more"),
            format!("fast {digest} 1000 60"),
            format!("full {} 1000 60", &digest[1..]),
            format!("full {digest} -1 60"),
            format!("full {digest} 1000 1.5"),
        ] {
            assert_eq!(read(&wrong), None, "{wrong}");
        }
    }
}
