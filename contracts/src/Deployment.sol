// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {JobEscrow} from "./JobEscrow.sol";
import {NodeRegistry} from "./NodeRegistry.sol";

/// @title Deployment
/// @notice Creates registry and escrow, which name each other, in one transaction. Created by CREATE2 itself, it puts both at
/// addresses that its own init code decides: same code and parameters, same addresses, whoever sends it.
/// @dev Its init code holds that of both contracts and must stay below EIP-3860's 49,152 bytes.
/// Warning: It is the first owner of both and can do nothing with them: until `owner` accepts, nobody can pause them or set a
/// fee, and if that account cannot accept, nobody ever will. Nothing but those powers depends on it.
contract Deployment {
    /// @dev Seconds and wei, as the constructors of `NodeRegistry` and `JobEscrow` have them.
    struct Parameters {
        /// Who may accept the ownership of both.
        address owner;
        uint96 minStake;
        uint128 bond;
        uint64 unbondingPeriod;
        uint64 thawPeriod;
        uint32 maxChallengeWindow;
        uint64 arbiterPeriod;
    }

    /// @notice The `NodeRegistry`.
    NodeRegistry public immutable registry;
    /// @notice The `JobEscrow`.
    JobEscrow public immutable escrow;

    /// @notice Ownership offered to nobody could never be accepted.
    error ZeroOwner();

    constructor(Parameters memory p) {
        require(p.owner != address(0), ZeroOwner());
        // The escrow is the second contract that this one creates: RLP of [this, 2].
        address second = address(uint160(uint256(keccak256(abi.encodePacked(hex"d694", address(this), hex"02")))));
        NodeRegistry registry_ = new NodeRegistry(p.minStake, p.unbondingPeriod, p.bond, second, address(this));
        JobEscrow escrow_ =
            new JobEscrow(address(registry_), p.thawPeriod, address(this), p.maxChallengeWindow, p.arbiterPeriod);
        registry_.transferOwnership(p.owner);
        escrow_.transferOwnership(p.owner);
        (registry, escrow) = (registry_, escrow_);
    }
}
