package samples

type story struct {
	hostname string
	expected []Expectation
}

// stories are the simulated endpoints. The events of each are in
// events/<hostname>.jsonl.
var stories = []story{
	{
		hostname: "WS-ACCOUNTING-01",
		expected: []Expectation{
			{Line: 24, Signatures: []string{"OfficeAppStartsShell", "PowerShellEncodedCommand"}, Criticality: 10, Origin: OriginManager},
			{Line: 25, Signatures: []string{"DynamicDnsLookup"}, Criticality: 2, Origin: OriginManager},
			{Line: 26, Signatures: []string{"ScriptHostUnusualPort"}, Criticality: 3, Origin: OriginManager},
			{Line: 28, Signatures: []string{"AutorunFromUserFolder"}, Criticality: 6, Origin: OriginManager},
			{Line: 33, Signatures: []string{"PrivilegeListing"}, Criticality: 1, Origin: OriginManager},
			{Line: 35, Signatures: []string{"AgentPolicy:ForeignHandleToLsass", "LsassMemoryRead"}, Criticality: 10, Origin: OriginBoth},
			{Line: 44, Signatures: []string{"PasswordProtectedArchive"}, Criticality: 4, Origin: OriginManager},
		},
	},
	{
		hostname: "WS-DESIGN-02",
		expected: []Expectation{
			{Line: 31, Signatures: []string{"CertutilDownload", "RenamedSystemTool"}, Criticality: 10, Origin: OriginManager},
			{Line: 34, Signatures: []string{"SchtasksCreate"}, Criticality: 4, Origin: OriginManager},
			{Line: 35, Signatures: []string{"RundllScriptProtocol"}, Criticality: 9, Origin: OriginManager},
			{Line: 37, Signatures: []string{"RemoteThreadInBrowser"}, Criticality: 8, Origin: OriginManager},
			{Line: 40, Signatures: []string{"Builtin:CanaryModified"}, Criticality: 10, Origin: OriginAgent},
			{Line: 45, Signatures: []string{"WmiCommandConsumer"}, Criticality: 7, Origin: OriginManager},
		},
	},
	{
		hostname: "SRV-FILES-01",
		expected: []Expectation{
			{Line: 18, Signatures: []string{"RemoteDesktopLogon"}, Criticality: 0, Origin: OriginManager},
			{Line: 24, Signatures: []string{"SelfAddedToGroup"}, Criticality: 7, Origin: OriginManager},
			{Line: 27, Signatures: []string{"ServiceFromSuspiciousPath"}, Criticality: 8, Origin: OriginManager},
			{Line: 40, Signatures: []string{"ShadowCopiesDeleted"}, Criticality: 10, Origin: OriginManager},
			{Line: 41, Signatures: []string{"MassRenameCommand"}, Criticality: 7, Origin: OriginBoth},
			{Line: 46, Signatures: []string{"EventLogCleared"}, Criticality: 8, Origin: OriginManager},
		},
	},
	{
		hostname: "lnx-build-01",
		expected: []Expectation{
			{Line: 8, Signatures: []string{"linux.exec_from_shared_memory"}, Criticality: 8, Origin: OriginAgent},
		},
	},
}
