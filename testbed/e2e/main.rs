//! Real deploys and real faults in the virtual rack.
