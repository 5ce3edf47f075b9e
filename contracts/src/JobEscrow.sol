// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Accounts} from "./Accounts.sol";
import {Disputes} from "./Disputes.sol";
import {EscrowState} from "./EscrowState.sol";
import {IJobEscrow} from "./interfaces/IJobEscrow.sol";

/// @title JobEscrow
/// @notice See `IJobEscrow`. Immutable: money moves by the signatures of those it belongs to, and by time. The owner sets a
/// fee within `MAX_FEE_BPS` and each order's own limit, and can stop deposits and new jobs; no call of the owner's lowers
/// anyone's balance or holds up a result, a payment, a refund or a withdrawal.
/// @dev Batches make no external call but to the registry and, within `SignatureLib`'s limits, to the wallets that signed.
/// Warning: The registry is trusted: it decides whose results for open orders count.
/// Warning: Tokens are the requester's and the node's choice. One that takes back balances or lies about them harms those
/// who deal in it, and only in that token.
contract JobEscrow is Accounts, Disputes {
    /// @param registry_ The `NodeRegistry`.
    /// @param thawPeriod_ Seconds between `thaw` and `withdraw`.
    /// @param owner_ The first owner.
    /// @param maxChallengeWindow_ Longest challenge window in seconds.
    /// @param arbiterPeriod_ Seconds an arbiter has. With the longest window less than the registry's unbonding period.
    constructor(
        address registry_,
        uint64 thawPeriod_,
        address owner_,
        uint32 maxChallengeWindow_,
        uint64 arbiterPeriod_
    ) EscrowState(registry_, thawPeriod_, owner_, maxChallengeWindow_, arbiterPeriod_) {}

    /// @dev Coin comes by calls; without one only from the registry, as a requester's compensation.
    receive() external payable {
        require(msg.sender == registry, WrongValue(0, msg.value));
    }

    /// @inheritdoc IJobEscrow
    function setFeeBps(uint16 feeBps_) external override onlyOwner {
        require(feeBps_ <= MAX_FEE_BPS, FeeTooHigh(feeBps_, MAX_FEE_BPS));
        feeBps = feeBps_;
        emit FeeBpsSet(feeBps_);
    }

    /// @inheritdoc IJobEscrow
    function setPaused(bool paused_) external override onlyOwner {
        paused = paused_;
        emit PausedSet(paused_);
    }
}
