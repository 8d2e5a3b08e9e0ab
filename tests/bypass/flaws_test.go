package bypass

// flaws are what the review of the design's first draft found, by its numbers.
var flaws = []bypass{{
	id: "R01", name: "forgery",
	title: "a flow hit skips anti-spoofing",
	note:  "B13, T1",
	tests: []string{"tests/packet TestForgedTupleOfALiveFlow"},
}, {
	id: "R02", name: "own_node_by_address",
	title: `"own node" by address is a hole in both directions`,
	note:  "B31, B32, T3",
	tests: []string{"tests/packet TestNodeAddressIsNoPass", "controlplane/policy TestServiceServedByThisNodeIsNoFrontend"},
}, {
	id: "R03", name: "uplink_unjudged",
	title: "egress leaves by the uplink unjudged after the node's NAT",
	note:  "B33, T7",
	tests: []string{"tests/packet TestServiceIsJudgedBehindNAT"},
}, {
	id: "R04", name: "half_judged",
	title: "an entry does not say what was judged",
	note:  "T10",
	tests: []string{"tests/packet TestHalfJudgedEntry"},
}, {
	id: "R05", name: "answers_as_new",
	title: "a lost or stale entry turns answers into new traffic",
	note:  "B14, B15, B17",
	tests: []string{"tests/packet TestStaleEntryIsJudgedInItsInitiatorsOrientation", "tests/packet TestMidStreamPickUp", "tests/packet TestFlowShare"},
}, {
	id: "R06", name: "past_nat",
	title: "cached delivery goes past NAT and conntrack",
	note:  "T2, T4",
	tests: []string{"tests/packet TestPathIsFixedByTheFirstPacket", "tests/packet TestAnswerThroughNATIsDecided"},
}, {
	id: "R07", name: "reverse",
	title: "new connections the other way ride on an old tuple",
	note:  "B16, T8",
	tests: []string{"tests/packet TestReverseConnectionOnAnOldTuple"},
}, {
	id: "R08", name: "torn_values",
	title: "one map value replaced whole is not atomic for a reader",
	note:  "M1",
	tests: []string{"datapath/maps TestReadersSeeOneEpoch"},
}, {
	id: "R09", name: "slots",
	title: "two slots need a since, a grace and an epoch read first",
	note:  "M2",
	tests: []string{"datapath/maps TestCommitWaitsBeforeItRecycles", "datapath/maps TestStagedButNeverCommitted", "tests/atomic TestEveryMixtureIsVisible"},
}, {
	id: "R10", name: "addresses_outside_the_commit",
	title: "addresses change outside of the commit",
	note:  "B18",
	tests: []string{"datapath/maps TestPeersChangeInOneEpoch", "datapath/maps TestAddedAddressMovesTheEpoch", "tests/packet TestUnconcernedFlowIsRestamped"},
}, {
	id: "R11", name: "mapped",
	title: "v4-mapped addresses mix the families",
	note:  "B12, B28, M4",
	tests: []string{"tests/packet TestFamiliesAreApart"},
}, {
	id: "R12", name: "denied_scan",
	title: "denied packets pay the full scan, for ever",
	note:  "M3",
	tests: []string{"tests/packet TestDenialsAreCountedExactly", "controlplane/policy TestExactPortsAreNotScanned"},
}, {
	id: "R13", name: "identity_numbers",
	title: "identity numbers depend on who came first, and collide",
	note:  "B25",
	tests: []string{"controlplane/policy TestNumbersSurviveARestart", "controlplane/policy TestCollidingLabelsGetTheNextNumber"},
}, {
	id: "R14", name: "facts_explode",
	title: "facts are a product, and labels explode",
	note:  "what does not fit is refused by name",
	tests: []string{"datapath/maps TestFullMapIsNamedAndNothingChanges"},
}, {
	id: "R15", name: "sockets_missed",
	title: "what socket hooks miss",
	note:  "what reaches a Service's address past the sockets is judged on what it names (B31; docs/services.md)",
	tests: []string{"tests/node TestServices", "tests/node TestUDPSocketsWhoseBackendIsGone", "tests/packet TestServiceIsJudgedBehindNAT"},
}, {
	id: "R16", name: "several_agents",
	title: "several agents on one kernel see each other's sockets",
	note:  "hooks of sockets leave those of other namespaces than this agent's pods' alone; maps and links are apart",
	tests: []string{"tests/node TestServices", "controlplane/agent TestMapsOfAnotherStateDirectoryAreRefused", "tests/node TestSecondAgentRefuses"},
}, {
	id: "R17", name: "losses",
	title: "losses are not exact",
	note:  "B39, M6",
	tests: []string{"tests/node TestFlowAccount", "datapath/reader TestReadLosesNothing", "tests/packet TestSweepAgesFlows"},
}, {
	id: "R18", name: "upgrade",
	title: "upgrade moves links one at a time",
	note:  "B23",
	tests: []string{"tests/packet TestReloadKeepsFlows", "tests/packet TestNewMapsKeepFlows", "datapath/loader TestSwitchAfterDeath", "tests/node TestUpgradeToOtherMaps"},
}, {
	id: "R19", name: "return_codes",
	title: "accepting skips other people's filters; redirect needs both MACs",
	note:  "T11",
	tests: []string{"datapath/loader TestFilters", "tests/packet TestRedirectRewritesAddresses"},
}, {
	id: "R20", name: "reuse_of_names",
	title: "names and addresses are used again",
	note:  "B21, B22, B24",
	tests: []string{"controlplane/agent TestAddWaitsForThePod", "controlplane/policy TestAnAddressOfTwoPodsIsTheFirstOnes", "cni TestDelOrder"},
}, {
	id: "R21", name: "node_edge",
	title: "trust at the node's edge",
	note:  "B12, B35, B37",
	tests: []string{"tests/packet TestTunnelTrustsNodesForTheirOwnPods", "tests/cluster TestTunnel"},
}, {
	id: "R22", name: "icmp_errors",
	title: "ICMP errors with a chosen inner packet",
	note:  "B10",
	tests: []string{"tests/packet TestICMPErrors"},
}, {
	id: "R23", name: "fragments",
	title: "fragments",
	note:  "B01, B02, B03, B06",
	tests: []string{"tests/packet TestFragments"},
}, {
	id: "R24", name: "neighbours",
	title: "ARP, NDP, DHCP, router advertisements",
	note:  "B11",
	tests: []string{"cni TestAdd"},
}, {
	id: "R25", name: "missing_fact",
	title: "a missing fact opens a rule that denies",
	note:  "does not apply yet: no policy denies; with those that do, tests/packet",
}, {
	id: "R26", name: "denials_washed_out",
	title: "a pod washes its neighbours' denials out",
	note:  "B39",
	tests: []string{"tests/packet TestRefusalsAreNotWashedOut", "tests/packet TestDenialsAreCountedExactly", "datapath/maps TestDenialsOfRulesOutOfForceAreRetired"},
}, {
	id: "R27", name: "rule_ids",
	title: "rule ids are given again, and credit the wrong policy",
	tests: []string{"controlplane/policy TestEditedRulesGetNewIDs", "tests/node TestRevocationIsRecorded", "controlplane/flowlog TestNamesAreOfTheirTime"},
}, {
	id: "R28", name: "kernel_floor",
	title: "the kernel's floor",
	note:  "`make test-kernels` (docs/kernels.md)",
	tests: []string{"datapath/loader TestKernelHasWhatIsNeeded"},
}, {
	id: "R29", name: "self_traffic",
	title: "a pod's traffic with itself",
	tests: []string{"controlplane/policy TestSemantics"},
}, {
	id: "R30", name: "shield_and_names",
	title: "who owns a socket; what the shield's list may not hold",
	note:  "an entry that holds an address of a node, a pod, the API server or a DNS server is refused (docs/install.md)",
	tests: []string{"controlplane/shield TestWhatCutsTheNodeOffIsRefused", "controlplane/agent TestShieldListIsEnforced", "tests/node TestShieldList", "tests/packet TestShieldDeniesBySource", "tests/node TestProcessThatListens"},
}}
