//! The stories: each is one claim about every data path. Depends on the rest of the suite.

use anyhow::Result;

use crate::{
    mesh::Mesh,
    rungs::Rung,
    world::{Family, Link},
};

mod changes;
mod choice;
mod counters;
mod flows;
mod life;
mod links;
mod liveness;
mod packets;
mod reach;
mod takeover;

/// One story.
pub(crate) struct Story {
    /// The claim.
    pub(crate) name: &'static str,
    /// Whether it needs nodes that no data path has ever touched.
    pub(crate) untouched: bool,
    /// Whether it is about how a data path starts: none may run before.
    pub(crate) starts: bool,
    /// What nodes are connected by. One that is about something else needs a card alone.
    pub(crate) links: &'static [Link],
    /// What clients speak, where that can change it.
    pub(crate) families: &'static [Family],
    /// Whether it is about how packets come in and go out, or about hooks themselves, and not about what the
    /// programs decide.
    pub(crate) of_hooks: bool,
    /// Proves it. No agent runs at the start; those that run at the end are stopped.
    pub(crate) run: fn(&mut Mesh<'_>) -> Result<()>,
}

impl Story {
    /// Whether it is about such nodes and clients.
    pub(crate) fn runs_on(&self, rung: &Rung) -> bool {
        self.links.contains(&rung.link) && self.families.contains(&rung.family)
    }

    const fn about_starting(self) -> Self {
        Self { starts: true, ..self }
    }

    const fn for_both_families(self) -> Self {
        Self {
            families: &[Family::Ipv4, Family::Ipv6],
            ..self
        }
    }
}

/// All of them.
pub(crate) const STORIES: &[Story] = &[
    // First, as the others then use the nodes that it has shown to be clean.
    Story {
        untouched: true,
        starts: true,
        ..story("detaching_leaves_no_trace", life::no_trace).for_both_families()
    },
    on_every_link("requests_rotate_over_local_and_remote_replicas", reach::rotation).for_both_families(),
    on_every_link("every_node_answers", reach::every_node_answers).for_both_families(),
    on_every_link("datagrams_rotate_and_are_answered", reach::datagrams).for_both_families(),
    on_every_link(
        "local_processes_reach_replicas_by_any_address_of_the_node",
        reach::local_processes,
    )
    .for_both_families(),
    on_every_link("containers_reach_their_own_nodes_ports", reach::containers),
    story(
        "replicas_reach_themselves_by_their_own_nodes_ports",
        reach::replicas,
    )
    .about_starting(),
    on_every_link("replicas_see_the_clients_address", reach::replicas_see_clients).for_both_families(),
    on_every_link("bulk_transfers_arrive_whole", reach::bulk).for_both_families(),
    on_every_link("a_service_without_replicas_refuses_at_once", reach::refusal).for_both_families(),
    on_every_link(
        "datagrams_of_any_size_are_answered_by_as_many_bytes",
        packets::datagrams_of_any_size,
    )
    .for_both_families(),
    story(
        "fragments_may_arrive_in_reverse_order",
        packets::last_fragment_first,
    )
    .for_both_families(),
    on_every_link(
        "a_clients_socket_learns_that_a_replica_refuses_its_datagram",
        packets::closed_port,
    )
    .for_both_families(),
    story(
        "a_replica_learns_from_a_router_what_the_way_carries",
        packets::narrow_way,
    )
    .for_both_families(),
    on_every_link("other_traffic_passes", reach::other_traffic).for_both_families(),
    story("tcp_packets_of_more_than_64_kib_pass_whole", packets::big_tcp).about_starting(),
    story(
        "answers_to_what_is_sent_from_a_published_port_are_the_senders",
        packets::own_datagrams,
    )
    .for_both_families(),
    story("frames_of_a_vlan_are_left_to_its_device", links::tagged),
    Story {
        links: &[Link::Bond],
        ..story("a_bond_that_loses_a_cable_goes_on", links::lost_cable)
    },
    decision("every_algorithm_is_known_or_refused", choice::algorithms),
    decision("weights_are_kept", choice::weights),
    decision("a_hash_keeps_a_clients_port_at_its_replica", choice::hash).for_both_families(),
    decision("the_idle_replica_is_preferred", choice::least_connections),
    decision(
        "affinity_keeps_a_client_until_its_replica_drains",
        choice::affinity,
    )
    .for_both_families(),
    on_every_link("a_draining_replica_keeps_its_connections_only", changes::draining).for_both_families(),
    decision("a_removed_replicas_connections_end", changes::removal).for_both_families(),
    on_every_link(
        "what_a_node_cannot_deliver_goes_to_another_replica",
        changes::stale_snapshot,
    )
    .for_both_families(),
    decision(
        "a_replica_that_does_not_answer_is_passed_over_until_it_does",
        changes::hanging_replica,
    )
    .for_both_families(),
    decision(
        "a_node_that_is_cut_off_leaves_rotation_and_comes_back",
        liveness::cut_off,
    ),
    decision("new_replicas_take_part_at_once", changes::growth),
    story("applying_again_changes_nothing", changes::again),
    decision("many_services_are_applied_in_reasonable_time", changes::scale),
    decision("counters_are_exact", counters::exact),
    decision("only_the_entry_node_counts", counters::entry_node),
    decision(
        "open_connections_are_listed_on_every_node_they_pass",
        flows::listed,
    )
    .for_both_families(),
    story("what_other_programs_made_is_not_touched", life::others).about_starting(),
    story("a_killed_agents_data_path_is_adopted", life::adoption)
        .about_starting()
        .for_both_families(),
    story(
        "a_release_with_other_maps_takes_over_every_connection",
        takeover::other_maps,
    )
    .about_starting()
    .for_both_families(),
    story("cleaning_after_a_killed_agent_leaves_no_trace", life::cleaned).about_starting(),
];

const fn story(name: &'static str, run: fn(&mut Mesh<'_>) -> Result<()>) -> Story {
    Story {
        name,
        untouched: false,
        starts: false,
        links: &[Link::Card],
        families: &[Family::Ipv4],
        of_hooks: true,
        run,
    }
}

/// One about what the programs decide, by whichever hooks they run.
const fn decision(name: &'static str, run: fn(&mut Mesh<'_>) -> Result<()>) -> Story {
    Story {
        of_hooks: false,
        ..story(name, run)
    }
}

/// One that every link can change.
const fn on_every_link(name: &'static str, run: fn(&mut Mesh<'_>) -> Result<()>) -> Story {
    Story {
        links: &[Link::Card, Link::Vlan, Link::Bond],
        ..story(name, run)
    }
}
