//! What layouts promise, whatever the image and the disk.
