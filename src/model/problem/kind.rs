//! Every kind of problem with its code, title and explanation.
//!
//! `hostler explain HS012` prints them, and `docs/using/reference/errors.md` is made of them. A
//! code must never change its meaning, and the code of a removed kind must never come back.

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The spec does not count.
    Error,
    /// The spec counts.
    Warning,
    /// A file is not read.
    Note,
}

impl Severity {
    /// The severity's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

macro_rules! kinds {
    ($($kind:ident $code:literal $severity:ident $title:literal $explanation:literal;)+) => {
        /// The kind of a problem.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum ProblemKind {
            $(#[doc = $title] $kind,)+
        }

        impl ProblemKind {
            /// Every kind, in the order of the codes.
            pub const ALL: &[Self] = &[$(Self::$kind,)+];

            /// The stable code.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$kind => $code,)+ }
            }

            /// How much it matters.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$kind => Severity::$severity,)+ }
            }

            /// The kind in a few words.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$kind => $title,)+ }
            }

            /// The meaning and the remedy.
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$kind => $explanation,)+ }
            }
        }
    };
}

impl ProblemKind {
    /// Finds the kind with this code.
    pub fn with_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.code() == code)
    }
}

/// A file that cannot be read.
impl Default for ProblemKind {
    fn default() -> Self {
        Self::Unreadable
    }
}

kinds! {
    Unreadable "HS001" Error "a file cannot be read"
        "The file is missing, a link to nothing, no regular file, or not readable for this user. \
        The node keeps its last good spec until the file is readable again.";
    Empty "HS002" Error "a file is empty"
        "An empty file is usually half-written. Write the spec, or remove the file if hostler is \
        to forget the machine.";
    TooLarge "HS003" Error "a file is too large"
        "hostler reads at most 256 KiB of a spec; a spec has one or two thousand bytes. Put large \
        content into a file and attach it with config_drive.user_data_file.";
    NotUtf8 "HS004" Error "a file is not UTF-8"
        "TOML is UTF-8. Save the file as UTF-8, not as UTF-16 or Latin-1.";
    ConflictMarker "HS005" Error "a git conflict marker"
        "A merge left both versions in the file. Choose one, remove git's three marker lines, and \
        commit the result.";
    Syntax "HS006" Error "a TOML syntax error"
        "The file is no TOML at this place. A line is `key = value`, `[table]`, or a comment after \
        `#`; strings stand in double quotes.";
    Duplicate "HS007" Error "a key or a table twice in one file"
        "TOML allows each key and each table once. Merge both places.";
    Unquoted "HS008" Error "a string without plain double quotes"
        "Words, addresses and dates stand in double quotes: address = \"192.0.2.20\". Word \
        processors and chats replace quotes by typographic ones, which TOML does not know.";
    YamlColon "HS009" Error "a colon after a key"
        "YAML writes `key: value`; TOML writes `key = value`. A YAML mapping is a TOML table: \
        `boot:` is [boot].";
    UnknownKey "HS010" Error "an unknown key or table"
        "No key of this name exists in this table. A mistyped key would otherwise be ignored \
        without a word, so that the machine is not as the spec means. Correct it, move it to the \
        table that knows it, or remove it.";
    MissingKey "HS011" Error "a required key is missing"
        "The key has no default, in the spec, in _defaults.toml and in the agent's [defaults]. \
        Some keys are required only because another key has a certain value; the message names it.";
    WrongType "HS012" Error "a value of the wrong type"
        "The key takes another type: a string in quotes, an integer, true or false, a list in \
        brackets, or a table.";
    UnknownWord "HS013" Error "a word that is none of the key's words"
        "The key takes one word of a closed set, in lower case. The message lists them.";
    UselessKey "HS014" Error "a key that has no effect beside the others"
        "Another key makes this one useless, so that one of the two is a mistake. Such a key may \
        stand in defaults, where it is ignored, but not in a spec.";
    Conflict "HS015" Error "keys that exclude each other"
        "Each value is right by itself, but a machine cannot be installed with both. Change one.";
    BadList "HS016" Error "a list with too few or too many elements"
        "A list of network interfaces must name at least one; no list has more than 64 elements.";
    PasswordInSpec "HS017" Error "a password in a spec"
        "Specs are readable for everybody, and lie in git. Put the password into a file of the \
        agent's secrets directory (/etc/hostler/secrets), with mode 0600, and name the file in \
        bmc.password_file. A password that was committed is known: change it.";
    BadMac "HS020" Error "a wrong MAC address"
        "A MAC address is six pairs of hex digits, of one network interface: 52:54:00:12:34:56, \
        52-54-00-12-34-56 or 5254.0012.3456. The list boot.mac names each interface once.";
    BadAddress "HS021" Error "a wrong network address"
        "A BMC's address is a host name or an IP address, perhaps with a port: 192.0.2.20, \
        bmc.example:623 or [2001:db8::1]:623. It is no URL: hostler speaks IPMI, not HTTP.";
    BadDuration "HS022" Error "a wrong duration"
        "A duration is a string with units: \"90s\", \"20m\", \"1h 30m\". It is from one second to \
        168 hours.";
    BadSize "HS023" Error "a wrong size"
        "A size is a string with its unit: \"480GB\" (powers of 1000) or \"64MiB\" (powers of \
        1024).";
    BadChecksum "HS024" Error "a wrong checksum"
        "A checksum is sha256: or sha512: with the hex digits of the file as published, or the \
        path or URL of a list such as SHA256SUMS.";
    BadPath "HS025" Error "a wrong path or URL"
        "A path has no `..`, `.` or `//` in it, so that it stays in its directory. A URL begins \
        with http:// or https://, and has no user name or password in it.";
    BadKernelArgument "HS026" Error "a wrong kernel argument"
        "Each element of kernel_args is one word of printable ASCII, without characters that mean \
        something to a boot loader. Arguments that begin with hostler. are hostler's own.";
    BadHint "HS027" Error "a wrong root device hint"
        "A hint describes one disk: a kernel name (sda), a serial, a WWN, a path in \
        /dev/disk/by-path, or host:channel:target:lun.";
    BadNumber "HS028" Error "a number out of range"
        "The number is below or above the range that the message names.";
    BadAttachment "HS029" Error "an attached file cannot be used"
        "The file is missing, too large, outside of the spec directory, or not in the format that \
        its key needs. Attached files lie in the spec directory and do not end in .toml.";
    BadText "HS030" Error "a text that is not allowed"
        "The text is empty, too long, or has control characters.";
    BadFileName "HS040" Error "a file name that names no node"
        "The name of a spec without .toml is the node's name: at most 63 lower-case letters, \
        digits and hyphens. Defaults for all specs are in _defaults.toml.";
    Clash "HS041" Error "one machine in two specs"
        "Two specs name the same network interface or BMC. hostler touches neither machine until \
        one of them is corrected.";
    NothingFound "HS042" Error "no spec in a directory"
        "The directory has no file NODE.toml. A mistyped directory must not look like a good one; \
        --allow-empty accepts it.";
    NotChecked "HS043" Error "a file that is no spec"
        "The file was named on the command line and the agent would never read it, because of its \
        name. Specs end in .toml, in lower case.";
    NoHint "HS201" Warning "several disks and no root device hint"
        "The machine had several disks at its last installation or attempt, and the spec does not \
        name the one to write. hostler installs nothing until it does. Name the disk that hostler \
        is to WIPE in [root_device], best by serial or wwn.";
    ChecksumOverHttp "HS202" Warning "a checksum over plain HTTP"
        "The image and the list of its checksums both come over HTTP without encryption: somebody \
        on the way can replace both. Write the digest itself, a list over https://, or a local \
        list.";
    NoChap "HS203" Warning "no CHAP on the exported disk"
        "With boot.require_chap = false everybody on the deploy network can write the disk while \
        the machine is installed. Ironic's ramdisk needs that; hostler's does not.";
    PassedOver "HS301" Note "a file that looks like a spec and is not read"
        "The agent reads *.toml of the spec directory itself, in lower case, and no subdirectory. \
        If it is a spec, rename or move it: hostler then installs its machine, and may WIPE it.";
    OtherFiles "HS302" Note "files without the ending .toml"
        "The directory has files that are no specs by their names. hostler does not read them, \
        unless a spec attaches them.";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Invariant (spec): Each kind of problem has one code, which is that of no other kind.
    #[test]
    fn codes_are_unique_and_in_order() {
        let codes: Vec<&str> = ProblemKind::ALL.iter().map(|kind| kind.code()).collect();
        assert!(codes.windows(2).all(|pair| pair[0] < pair[1]), "{codes:?}");
        for kind in ProblemKind::ALL {
            assert_eq!(ProblemKind::with_code(kind.code()), Some(*kind));
            let hundred = match kind.severity() {
                Severity::Error => "HS0",
                Severity::Warning => "HS2",
                Severity::Note => "HS3",
            };
            assert!(kind.code().starts_with(hundred), "{}", kind.code());
            assert!(kind.explanation().ends_with('.'), "{}", kind.code());
        }
    }
}
