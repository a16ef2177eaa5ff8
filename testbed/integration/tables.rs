//! Layouts as other tools see them: sgdisk, fdisk, parted and blkid make the images, and judge the
//! disks that come of them.

mod bios;
mod disk;
mod partitioned;
mod whole_disk;
