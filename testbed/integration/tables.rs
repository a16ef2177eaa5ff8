//! Layouts against other tools: sgdisk, fdisk, parted and blkid make the images, and check the
//! resulting disks.

mod bios;
mod disk;
mod partitioned;
mod whole_disk;
