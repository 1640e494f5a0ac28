//! One word for each thing that can be the matter, and how urgent it is.

/// All that [`Matter::cause`] may be: the contract of `/readyz`, listed in docs/operations.md.
pub(crate) const CAUSES: [&str; 9] =
    ["breaker_open", "database_away", "divergent", "lane_stopped", "paused", "reload", "slow", "stopped", "unmapped"];

/// What is the matter; stable words, for style sheets and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matter {
    Flowing,
    Failing,
    Behind,
    Slow,
    Starting,
    Stopping,
    Paused,
    Unmapped,
    TypeStopped,
    LaneStopped,
    TargetAway,
    SourceAway,
    Divergent,
    Reload,
    RowsLeft,
}

impl Matter {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Matter::Flowing => "flowing",
            Matter::Failing => "failing",
            Matter::Behind => "behind",
            Matter::Slow => "slow",
            Matter::Starting => "starting",
            Matter::Stopping => "stopping",
            Matter::Paused => "paused",
            Matter::Unmapped => "unmapped",
            Matter::TypeStopped => "type-stopped",
            Matter::LaneStopped => "lane-stopped",
            Matter::TargetAway => "target-away",
            Matter::SourceAway => "source-away",
            Matter::Divergent => "divergent",
            Matter::Reload => "reload",
            Matter::RowsLeft => "rows-left",
        }
    }

    /// The cause that `/readyz` and the metric `degraded` tell; `None`: nothing is degraded by it.
    pub(crate) fn cause(self) -> Option<&'static str> {
        match self {
            Matter::Flowing | Matter::Failing | Matter::Behind | Matter::RowsLeft => None,
            Matter::Starting | Matter::Stopping => None,
            Matter::Slow => Some("slow"),
            Matter::Paused => Some("paused"),
            Matter::Unmapped => Some("unmapped"),
            Matter::TypeStopped => Some("stopped"),
            Matter::LaneStopped => Some("lane_stopped"),
            Matter::TargetAway => Some("breaker_open"),
            Matter::SourceAway => Some("database_away"),
            Matter::Divergent => Some("divergent"),
            Matter::Reload => Some("reload"),
        }
    }

    /// One word for a badge and the title of the window.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Matter::Flowing => "Flowing",
            Matter::Failing => "Failures",
            Matter::Behind => "Behind",
            Matter::Slow => "Slow",
            Matter::Starting => "Starting",
            Matter::Stopping => "Stopping",
            Matter::Paused => "Paused",
            Matter::Unmapped => "Unmapped",
            Matter::TypeStopped | Matter::LaneStopped => "Stopped",
            Matter::TargetAway | Matter::SourceAway => "Database away",
            Matter::Divergent => "Divergent",
            Matter::Reload => "Configuration",
            Matter::RowsLeft => "Rows left out",
        }
    }

    pub(crate) fn tone(self) -> Tone {
        match self {
            Matter::Flowing => Tone::Good,
            Matter::Starting | Matter::Stopping | Matter::Paused => Tone::Calm,
            Matter::Behind
            | Matter::Slow
            | Matter::Divergent
            | Matter::Reload
            | Matter::Unmapped
            | Matter::RowsLeft => Tone::Warn,
            Matter::Failing | Matter::TypeStopped | Matter::LaneStopped | Matter::TargetAway | Matter::SourceAway => {
                Tone::Bad
            }
        }
    }
}

/// How urgent it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    Good,
    /// On purpose, or about to pass.
    Calm,
    Warn,
    Bad,
}

impl Tone {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Tone::Good => "good",
            Tone::Calm => "calm",
            Tone::Warn => "warn",
            Tone::Bad => "bad",
        }
    }
}
