//! The stories: each is one claim about every data path. Depends on the rest of the suite.

use anyhow::Result;

use crate::mesh::Mesh;

mod changes;
mod choice;
mod counters;
mod life;
mod reach;
mod takeover;

/// One story.
pub(crate) struct Story {
    /// The claim.
    pub(crate) name: &'static str,
    /// Whether it needs nodes that no data path has ever touched.
    pub(crate) untouched: bool,
    /// Proves it. No agent runs at the start; those that run at the end are stopped.
    pub(crate) run: fn(&mut Mesh<'_>) -> Result<()>,
}

/// All of them.
pub(crate) const STORIES: &[Story] = &[
    // First, as the others then use the nodes that it has shown to be clean.
    Story {
        untouched: true,
        ..story("detaching_leaves_no_trace", life::no_trace)
    },
    story("requests_rotate_over_local_and_remote_replicas", reach::rotation),
    story("every_node_answers", reach::every_node_answers),
    story("datagrams_rotate_and_are_answered", reach::datagrams),
    story(
        "local_processes_reach_replicas_by_any_address_of_the_node",
        reach::local_processes,
    ),
    story("containers_reach_their_own_nodes_ports", reach::containers),
    story(
        "replicas_reach_themselves_by_their_own_nodes_ports",
        reach::replicas,
    ),
    story("replicas_see_the_clients_address", reach::replicas_see_clients),
    story("bulk_transfers_arrive_whole", reach::bulk),
    story("a_service_without_replicas_refuses_at_once", reach::refusal),
    story("other_traffic_passes", reach::other_traffic),
    story("every_algorithm_is_known_or_refused", choice::algorithms),
    story("weights_are_kept", choice::weights),
    story("a_hash_keeps_a_clients_port_at_its_replica", choice::hash),
    story("the_idle_replica_is_preferred", choice::least_connections),
    story(
        "affinity_keeps_a_client_until_its_replica_drains",
        choice::affinity,
    ),
    story("a_draining_replica_keeps_its_connections_only", changes::draining),
    story("a_removed_replicas_connections_end", changes::removal),
    story(
        "what_a_node_cannot_deliver_goes_to_another_replica",
        changes::stale_snapshot,
    ),
    story(
        "a_replica_that_does_not_answer_is_passed_over_until_it_does",
        changes::hanging_replica,
    ),
    story("new_replicas_take_part_at_once", changes::growth),
    story("applying_again_changes_nothing", changes::again),
    story("many_services_are_applied_in_reasonable_time", changes::scale),
    story("counters_are_exact", counters::exact),
    story("only_the_entry_node_counts", counters::entry_node),
    story("what_other_programs_made_is_not_touched", life::others),
    story("a_killed_agents_data_path_is_adopted", life::adoption),
    story(
        "a_release_with_other_maps_takes_over_every_connection",
        takeover::other_maps,
    ),
    story("cleaning_after_a_killed_agent_leaves_no_trace", life::cleaned),
];

const fn story(name: &'static str, run: fn(&mut Mesh<'_>) -> Result<()>) -> Story {
    Story {
        name,
        untouched: false,
        run,
    }
}
