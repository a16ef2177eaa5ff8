//! The places that an image or a file of checksums can come from, as one enum.
//!
//! [`super::Sources`] uses it. A new place, such as a registry, is one file with the same methods
//! as [`LocalFile`] and [`HttpFile`], one variant here, and one line in [`ImageSource::parse`]. The
//! identity of an image never depends on its place: the cache's name is the digest, and fetches are
//! shared by digest and source.

use super::{
    FetchError, FetchOrder, Fetched, directories::Directories, http::HttpFile, local::LocalFile,
    sink::Sink, web,
};
use crate::progress::Watch;

/// The place of a file, as a spec names it.
#[derive(Debug)]
pub(super) enum ImageSource<'a> {
    /// A path in the directories of images.
    File(LocalFile<'a>),
    /// An http or https URL.
    Http(HttpFile),
}

impl<'a> ImageSource<'a> {
    /// Parses a source; a path has no `//`.
    pub(super) fn parse(text: &'a str, directories: &'a Directories) -> Result<Self, FetchError> {
        match web::url(text).transpose()? {
            Some(url) => Ok(Self::Http(HttpFile::new(url))),
            None => Ok(Self::File(LocalFile::new(directories, text))),
        }
    }

    /// The text to show and log for a source, also for one that does not parse.
    pub(super) fn shown_text(text: &str) -> String {
        match web::url(text) {
            None => text.to_owned(),
            Some(url) => url.map_or_else(|_| "a URL".to_owned(), |url| web::shown(&url)),
        }
    }

    /// The text to show and log, without credentials.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::File(file) => file.path().to_owned(),
            Self::Http(file) => file.shown(),
        }
    }

    /// The path as files of checksums spell it.
    pub(super) fn listed_path(&self) -> Vec<u8> {
        match self {
            Self::File(file) => file.path().as_bytes().to_vec(),
            Self::Http(file) => file.listed_path(),
        }
    }

    /// Whether a fetch can resume from the bytes of an earlier one.
    pub(super) fn can_resume(&self) -> bool {
        match self {
            Self::File(_) => false,
            Self::Http(_) => true,
        }
    }

    /// Size of a fetch on disk in bytes; `None` if the source does not report it.
    pub(super) async fn size(&self, watch: &Watch<'_>) -> Result<Option<u64>, FetchError> {
        match self {
            Self::File(file) => file.size(watch).await,
            Self::Http(file) => file.size(watch).await,
        }
    }

    /// Reads the first bytes of a small file: at most `bytes_max` + 1.
    pub(super) async fn read_small(
        &self,
        bytes_max: usize,
        watch: &Watch<'_>,
    ) -> Result<Vec<u8>, FetchError> {
        match self {
            Self::File(file) => file.read_small(bytes_max, watch).await,
            Self::Http(file) => file.read_small(bytes_max, watch).await,
        }
    }

    /// Fills the sink and finishes it. The caller compares the digest and stops the sink.
    pub(super) async fn fetch(
        &self,
        order: &FetchOrder<'_>,
        sink: &mut Sink,
        watch: &Watch<'_>,
    ) -> Result<Fetched, FetchError> {
        match self {
            Self::File(file) => file.fetch(order, sink, watch).await,
            Self::Http(file) => file.fetch(order, sink, watch).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_with_a_scheme_is_a_url_and_never_a_path() {
        let directories = Directories::new("/images", Vec::new());
        let parse = |text| ImageSource::parse(text, &directories);
        for path in ["a.img", "/images/a.img", "http:a.img", "a//b.img"] {
            assert!(matches!(parse(path), Ok(ImageSource::File(_))), "{path}");
        }
        for url in ["http://a.test/b.img", "HTTPS://a.test/b.img"] {
            assert!(matches!(parse(url), Ok(ImageSource::Http(_))), "{url}");
        }
        for neither in ["ftp://a.test/b.img", "oci://a.test/b:1", "http://", "://"] {
            assert!(matches!(parse(neither), Err(FetchError::Url(_))), "{neither}");
        }
    }

    #[test]
    fn a_list_spells_the_path_of_a_url_decoded_and_without_its_query() {
        let directories = Directories::new("/images", Vec::new());
        let path = |text| ImageSource::parse(text, &directories).unwrap().listed_path();
        assert_eq!(path("http://u:p@a.test/a%20b.img?t=1"), b"/a b.img");
        assert_eq!(path("a%20b.img"), b"a%20b.img");
    }
}
