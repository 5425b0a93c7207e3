//! The ladder on in-memory data paths that refuse on demand.

use std::{
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use super::*;
use crate::{
    datapath::{
        ChangeError, EarlierServes, ReachedRung, RungState, RungStatus, dump::Dump, memory::MemoryDatapath,
    },
    model::{HostInterface, Protocol, ServiceKey},
    plan::DatapathChange,
};

/// What a test's kernel refuses, and what was done to it, in order.
#[derive(Default)]
struct Kernel {
    refuses_to_make: BTreeSet<DatapathKind>,
    /// What it refuses to make would replace what an earlier agent has left.
    earlier_serves: bool,
    refuses_uplinks: BTreeSet<DatapathKind>,
    uplink_is_gone: bool,
    refuses_service: Option<ServiceKey>,
    refused_rungs: Vec<RungStatus>,
    log: Vec<String>,
}

type SharedKernel = Arc<Mutex<Kernel>>;

struct Bench(SharedKernel);

impl DatapathFactory for Bench {
    fn make(&mut self, kind: DatapathKind) -> Result<Box<dyn Datapath>, DatapathError> {
        let mut kernel = self.0.lock().unwrap();
        if kernel.refuses_to_make.contains(&kind) {
            let error = refusal("load it", "operation not permitted");
            return Err(if kernel.earlier_serves {
                DatapathError {
                    operation: "take over".to_owned(),
                    source: EarlierServes(error).into(),
                }
            } else {
                error
            });
        }
        kernel.log.push(format!("make {}", kind.name()));
        Ok(Box::new(Fake {
            kind,
            kernel: Arc::clone(&self.0),
            memory: MemoryDatapath::default(),
        }))
    }

    fn clear(&mut self, kind: DatapathKind) -> Result<(), DatapathError> {
        self.0.lock().unwrap().log.push(format!("clear {}", kind.name()));
        Ok(())
    }
}

struct Fake {
    kind: DatapathKind,
    kernel: SharedKernel,
    memory: MemoryDatapath,
}

impl Datapath for Fake {
    fn apply(&mut self, changes: &[DatapathChange]) -> Vec<ChangeError> {
        let mut kernel = self.kernel.lock().unwrap();
        let mut errors = Vec::new();
        for change in changes {
            if matches!(change, DatapathChange::AttachUplink(..))
                && kernel.refuses_uplinks.contains(&self.kind)
            {
                let source = if kernel.uplink_is_gone {
                    DatapathError {
                        operation: "attach to eth0".into(),
                        source: std::io::Error::from_raw_os_error(libc::ENODEV).into(),
                    }
                } else {
                    refusal("attach to eth0", "no memory")
                };
                errors.push(ChangeError {
                    change: change.clone(),
                    service: None,
                    source,
                });
            } else if change.service().is_some()
                && change.service() == kernel.refuses_service
                && !change.is_removal()
            {
                errors.push(ChangeError {
                    change: change.clone(),
                    service: change.service(),
                    source: refusal("write the service", "the table is full"),
                });
            } else {
                self.memory.apply(std::slice::from_ref(change));
            }
        }
        if errors.is_empty() && !changes.is_empty() {
            kernel.log.push(format!("{} is up", self.kind.name()));
        }
        errors
    }

    fn counters(&mut self) -> Result<Counters, DatapathError> {
        let mut counters = self.memory.counters()?;
        for traffic in counters.services.values_mut() {
            traffic.connections_total = 5;
            traffic.connections_active = 1;
        }
        Ok(counters)
    }

    fn dump(&mut self, flows: usize) -> Result<Dump, DatapathError> {
        self.memory.dump(flows)
    }

    fn kind(&self) -> NodeDatapath {
        self.kind.into()
    }

    fn modes(&self) -> Vec<InterfaceMode> {
        self.memory.modes()
    }

    fn reached_rung(&self) -> ReachedRung {
        let passed = self.kernel.lock().unwrap().refused_rungs.clone();
        let rung = passed
            .last()
            .map_or(Rung::XdpNativeTcx, |passed| match passed.rung {
                Rung::XdpNativeTcx => Rung::XdpNativeClsact,
                _ => Rung::Tc,
            });
        ReachedRung {
            rung: (!self.memory.state.uplinks.is_empty()).then_some(rung),
            passed,
        }
    }

    fn climb(&mut self) -> Result<(), DatapathError> {
        self.kernel.lock().unwrap().log.push("climb".into());
        Ok(())
    }

    fn maintain(&mut self) -> Result<(), DatapathError> {
        self.memory.maintain()
    }

    fn detach(&mut self) -> Result<(), DatapathError> {
        let entry = format!("detach {}", self.kind.name());
        self.kernel.lock().unwrap().log.push(entry);
        self.memory.detach()
    }
}

fn refusal(operation: &str, reason: &str) -> DatapathError {
    DatapathError {
        operation: operation.into(),
        source: reason.into(),
    }
}

const WEB: ServiceKey = ServiceKey {
    protocol: Protocol::Tcp,
    port: 9200,
};

/// An uplink, a peer and a service.
fn state(_: DatapathKind) -> Desired {
    let mut desired = Desired::default();
    desired.peers.insert(Ipv4Addr::new(192, 0, 2, 2), None);
    let uplink = HostInterface {
        index: 2,
        mac: Default::default(),
        mtu: 1500,
        has_vlans: false,
    };
    desired.uplinks.insert("eth0".into(), uplink);
    let service = crate::model::ServiceEntry {
        id: "web-id".into(),
        name: "web".into(),
        balance: Default::default(),
        active: Vec::new(),
        limits: Default::default(),
        policy: None,
        closed: Default::default(),
        idle: Default::default(),
    };
    desired.services.insert(WEB, service);
    desired
}

/// A ladder on a kernel, after the agent's first round.
struct Rig {
    kernel: SharedKernel,
    ladder: Ladder,
}

impl Rig {
    fn start(choice: DatapathChoice, kernel: Kernel) -> Self {
        let kernel = Arc::new(Mutex::new(kernel));
        let ladder = Ladder::start(choice, Box::new(Bench(Arc::clone(&kernel)))).unwrap();
        let mut rig = Self { kernel, ladder };
        rig.rounds(1);
        rig
    }

    /// Rounds as the agent's loop makes them.
    fn rounds(&mut self, count: u32) {
        for _ in 0..count {
            self.ladder.reconcile(&state, Instant::now());
            self.ladder.retire();
        }
    }

    fn request(&mut self, request: DatapathRequest) -> Result<(), String> {
        let result = self.ladder.execute(request, &state, Instant::now());
        self.ladder.retire();
        result
    }

    fn kernel(&self) -> std::sync::MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap()
    }

    /// What was done since the last call.
    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.kernel().log)
    }

    fn rung(&self, rung: Rung) -> RungStatus {
        let mut rungs = self.ladder.status().rungs.into_iter();
        rungs.find(|status| status.rung == rung).unwrap()
    }
}

fn only(kind: DatapathKind) -> BTreeSet<DatapathKind> {
    BTreeSet::from([kind])
}

use DatapathKind::{Ebpf, Ipvs};

#[test]
fn the_best_that_works_is_used_and_leftovers_of_the_other_kind_are_removed() {
    let rig = Rig::start(DatapathChoice::Auto, Kernel::default());
    assert_eq!(rig.log(), ["make ebpf", "ebpf is up", "clear ipvs"]);
    let status = rig.ladder.status();
    assert_eq!((status.kind, status.rung), (Ebpf, Some(Rung::XdpNativeTcx)));
    assert_eq!((status.reason.as_str(), status.steps_down), ("", 0));
    assert_eq!(rig.rung(Rung::Ipvs).state, RungState::NotTried);
}

#[test]
fn a_refused_load_steps_down_at_the_start_with_the_kernels_reason() {
    let kernel = Kernel {
        refuses_to_make: only(Ebpf),
        ..Kernel::default()
    };
    let rig = Rig::start(DatapathChoice::Auto, kernel);
    let status = rig.ladder.status();
    assert_eq!((status.kind, status.rung), (Ipvs, Some(Rung::Ipvs)));
    assert_eq!(status.reason, "load it: operation not permitted");
    assert_eq!(status.steps_down, 1);
    assert_eq!(rig.rung(Rung::Tc).state, RungState::Refused);
    assert_eq!(rig.log(), ["make ipvs", "ipvs is up", "clear ebpf"]);
}

#[test]
fn when_nothing_works_every_refusal_is_reported() {
    let kernel = Kernel {
        refuses_to_make: BTreeSet::from([Ebpf, Ipvs]),
        ..Kernel::default()
    };
    let bench = Bench(Arc::new(Mutex::new(kernel)));
    let error = Ladder::start(DatapathChoice::Auto, Box::new(bench))
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        "eBPF: load it: operation not permitted; IPVS: load it: operation not permitted"
    );
}

#[test]
fn what_an_earlier_agent_left_is_not_given_up_for_another_kind() {
    let kernel = Kernel {
        refuses_to_make: only(Ebpf),
        earlier_serves: true,
        ..Kernel::default()
    };
    let kernel = Arc::new(Mutex::new(kernel));
    let bench = Bench(Arc::clone(&kernel));
    let started = Ladder::start(DatapathChoice::Auto, Box::new(bench));
    let error = started.err().unwrap().to_string();
    assert!(error.contains("start the earlier agent again"), "{error}");
    assert!(kernel.lock().unwrap().log.is_empty());
}

#[test]
fn an_explicit_choice_has_no_fallback() {
    let kernel = Kernel {
        refuses_to_make: only(Ebpf),
        ..Kernel::default()
    };
    let bench = Bench(Arc::new(Mutex::new(kernel)));
    assert!(Ladder::start(DatapathChoice::Ebpf, Box::new(bench)).is_err());

    let kernel = Kernel {
        refuses_uplinks: only(Ebpf),
        ..Kernel::default()
    };
    let mut rig = Rig::start(DatapathChoice::Ebpf, kernel);
    rig.rounds(10);
    assert_eq!(rig.ladder.kind(), Ebpf);
    assert!(!rig.ladder.failures().is_empty());
    assert_eq!(rig.rung(Rung::Ipvs).reason, "only ebpf is requested");
}

#[test]
fn persistent_refusals_step_down_once_and_permanently() {
    let mut rig = Rig::start(DatapathChoice::Auto, Kernel::default());
    rig.log();
    rig.ladder.reconcile(&|_| Desired::default(), Instant::now());
    rig.kernel().refuses_uplinks = only(Ebpf);
    rig.rounds(STRIKES - 1);
    assert_eq!(rig.ladder.kind(), Ebpf, "it may be temporary");
    rig.rounds(1);
    assert_eq!(rig.ladder.kind(), Ipvs);
    let log = rig.log();
    let end = &log[log.len() - 3..];
    assert_eq!(
        end,
        ["make ipvs", "ipvs is up", "detach ebpf"],
        "the new one is complete before the old one is removed: {log:?}"
    );
    assert!(rig.ladder.failures().is_empty());
    let status = rig.ladder.status();
    assert_eq!(status.steps_down, 1);
    assert!(
        status.reason.contains("attach to eth0: no memory"),
        "{}",
        status.reason
    );

    rig.kernel().refuses_uplinks.clear();
    rig.rounds(10);
    assert_eq!(rig.ladder.kind(), Ipvs, "not without a request");
    assert_eq!(rig.ladder.status().steps_down, 1);
}

#[test]
fn a_removed_device_is_no_reason_to_step_down() {
    let kernel = Kernel {
        refuses_uplinks: only(Ebpf),
        uplink_is_gone: true,
        ..Kernel::default()
    };
    let mut rig = Rig::start(DatapathChoice::Auto, kernel);
    rig.rounds(10);
    assert_eq!(rig.ladder.kind(), Ebpf);
}

#[test]
fn a_refused_service_is_no_reason_to_step_down() {
    let kernel = Kernel {
        refuses_service: Some(WEB),
        ..Kernel::default()
    };
    let mut rig = Rig::start(DatapathChoice::Auto, kernel);
    for _ in 0..10 {
        // Each time it is due.
        let at = rig.ladder.retry_at().unwrap();
        rig.ladder.reconcile(&state, at);
    }
    assert_eq!((rig.ladder.kind(), rig.ladder.status().steps_down), (Ebpf, 0));
    assert_eq!(
        rig.ladder.refused_services().into_keys().collect::<Vec<_>>(),
        [WEB]
    );
    assert!(rig.ladder.failures()[0].contains("web (tcp/9200)"));
}

#[test]
fn a_lower_rung_that_is_refused_too_is_removed_and_not_retried() {
    let kernel = Kernel {
        refuses_uplinks: BTreeSet::from([Ebpf, Ipvs]),
        ..Kernel::default()
    };
    let mut rig = Rig::start(DatapathChoice::Auto, kernel);
    rig.rounds(10);
    assert_eq!(rig.ladder.kind(), Ebpf);
    assert_eq!(rig.log(), ["make ebpf", "make ipvs", "detach ipvs"]);
    assert_eq!(rig.rung(Rung::Ipvs).state, RungState::Refused);
}

#[test]
fn steps_up_only_on_request_and_completely_before_the_other_is_removed() {
    let kernel = Kernel {
        refuses_to_make: only(Ebpf),
        ..Kernel::default()
    };
    let mut rig = Rig::start(DatapathChoice::Auto, kernel);
    rig.log();
    rig.request(DatapathRequest::Retry).unwrap();
    assert_eq!(rig.ladder.kind(), Ipvs, "still refused");
    assert_eq!(rig.log(), ["climb"]);

    rig.kernel().refuses_to_make.clear();
    rig.request(DatapathRequest::Retry).unwrap();
    assert_eq!(rig.ladder.kind(), Ebpf);
    assert_eq!(rig.log(), ["make ebpf", "ebpf is up", "detach ipvs"]);
    assert_eq!(rig.ladder.status().reason, "");
}

#[test]
fn a_retry_on_ebpf_tries_its_own_rungs() {
    let mut rig = Rig::start(DatapathChoice::Auto, Kernel::default());
    rig.log();
    rig.request(DatapathRequest::Retry).unwrap();
    assert_eq!(rig.log(), ["climb"]);
}

#[test]
fn another_choice_is_applied_or_changes_nothing() {
    let mut rig = Rig::start(DatapathChoice::Auto, Kernel::default());
    rig.kernel().refuses_to_make = only(Ipvs);
    rig.log();
    let reason = rig
        .request(DatapathRequest::Use(DatapathChoice::Ipvs))
        .unwrap_err();
    assert_eq!(reason, "load it: operation not permitted");
    let status = rig.ladder.status();
    assert_eq!((status.choice, status.kind), (DatapathChoice::Auto, Ebpf));

    rig.kernel().refuses_to_make.clear();
    rig.request(DatapathRequest::Use(DatapathChoice::Ipvs)).unwrap();
    assert_eq!(rig.log(), ["make ipvs", "ipvs is up", "detach ebpf"]);
    assert_eq!(rig.rung(Rung::Tc).reason, "only ipvs is requested");
    assert_eq!(rig.ladder.status().steps_down, 0, "requested, not refused");

    rig.request(DatapathRequest::Use(DatapathChoice::Auto)).unwrap();
    assert_eq!(rig.ladder.kind(), Ebpf);
}

#[test]
fn an_incomplete_change_is_taken_back() {
    let mut rig = Rig::start(DatapathChoice::Ipvs, Kernel::default());
    rig.kernel().refuses_uplinks = only(Ebpf);
    rig.log();
    assert!(rig.request(DatapathRequest::Use(DatapathChoice::Ebpf)).is_err());
    assert_eq!(rig.ladder.kind(), Ipvs);
    assert_eq!(rig.log(), ["make ebpf", "detach ebpf"]);
}

#[test]
fn a_refused_hook_is_counted_once() {
    let mut rig = Rig::start(DatapathChoice::Auto, Kernel::default());
    rig.kernel().refused_rungs = vec![RungStatus {
        rung: Rung::XdpNativeTcx,
        state: RungState::Refused,
        reason: "eth0: no tcx".into(),
    }];
    rig.rounds(3);
    let status = rig.ladder.status();
    assert_eq!(status.rung, Some(Rung::XdpNativeClsact));
    assert_eq!((status.reason.as_str(), status.steps_down), ("eth0: no tcx", 1));
}

#[test]
fn totals_continue_across_a_change_of_the_data_path() {
    let mut rig = Rig::start(DatapathChoice::Auto, Kernel::default());
    rig.request(DatapathRequest::Use(DatapathChoice::Ipvs)).unwrap();
    let traffic = rig.ladder.counters().unwrap().services[&WEB];
    assert_eq!((traffic.connections_total, traffic.connections_active), (10, 1));
}

#[test]
fn everything_is_removed_from_the_kernel_at_the_end() {
    let mut rig = Rig::start(DatapathChoice::Auto, Kernel::default());
    rig.log();
    rig.ladder
        .execute(DatapathRequest::Use(DatapathChoice::Ipvs), &state, Instant::now())
        .unwrap();
    rig.ladder.detach().unwrap();
    assert_eq!(rig.log()[2..], ["detach ebpf", "detach ipvs"]);
}
